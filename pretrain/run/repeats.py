"""Samples that a global batch has more than once: each is a negative of itself there.

A batch over the border of an epoch has some of both, and weights above 1 show a row again within
an epoch. They are counted before the first step, said, and refused where they are many.
"""

import numpy as np

from pretrain.batches.order import SampleOrder
from pretrain.recipe.stages import Stage

_BORDERS = 4  # of epochs, in each stage, that are looked at


def most_repeats(order: SampleOrder, stage: Stage) -> int:
    """The most samples of a batch that it has already: of the stage's first one, and of the first
    ones over an epoch's border."""
    batch, epoch = stage.options.global_batch_samples, order.epoch_samples
    span = batch * order.candidates  # positions that a batch is made of
    firsts, begin = {0}, stage.first_sample * order.candidates
    border = -(-(begin + 1) // epoch) * epoch - begin
    while border < stage.samples * order.candidates and len(firsts) <= _BORDERS:
        if border % span == 0 and epoch % span == 0:
            break  # no batch has a border inside
        firsts.add(border // span)
        border += epoch
    found = 0
    for first in firsts:
        begin = stage.first_sample + first * batch
        rows = order.rows(order.share(begin, batch, 0, 1))
        found = max(found, batch - len(np.unique(rows)))
    return found


def check_repeats(order: SampleOrder, stages: list[Stage], max_share: float) -> list[str]:
    """A line for each stage with repeats in a batch; ValueError where they are more than
    `max_share` of one."""
    said = []
    for stage in stages:
        batch, found = stage.options.global_batch_samples, most_repeats(order, stage)
        option = f"stages.{stage.name}.global_batch_samples={batch}"
        line = f"{option}: up to {found:,} samples of a batch that was looked at"
        if found > max_share * batch:
            raise ValueError(
                f"{line} are repeats, which are negatives of themselves; "
                f"data.max_repeated_share={max_share:g} allows {int(max_share * batch):,}: choose "
                "a smaller batch or flatter data.weights, or raise data.max_repeated_share"
            )
        if found:
            said.append(f"{line} are repeats, each a negative of itself (data.max_repeated_share)")
    return said
