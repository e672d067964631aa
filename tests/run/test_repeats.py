"""Samples that a batch has twice are counted before the first step, against every batch of a stage,
said, and refused where they are many."""

from collections import Counter

import numpy as np
import pytest
from forked_runs import train, trained

from pretrain.batches.balance import Balance
from pretrain.batches.order import SampleOrder
from pretrain.dataset.sample_weights import SampleWeights
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import plan_stages
from pretrain.run.repeats import check_repeats, most_repeats

ONE_HEAVY = np.ones(203, np.float32)
ONE_HEAVY[7] = 100


@pytest.mark.parametrize(
    ("samples", "batch", "steps", "weights", "candidates"),
    [
        *[(203, 128, 6, None, 1), (203, 16, 40, None, 1), (200, 50, 20, None, 1)],
        *[(203, 16, 12, ONE_HEAVY, 1), (203, 128, 6, None, 5), (200, 10, 20, None, 4)],
    ],
)
def test_the_most_repeats_of_a_batch(samples, batch, steps, weights, candidates):
    weighing = None if weights is None else SampleWeights(weights)
    balance = Balance(np.arange(samples, dtype=np.int32) % 9, candidates=candidates)
    order = SampleOrder(samples=samples, seed=3, weights=weighing, balance=balance)
    options = [
        *("--config", "pretrain/recipes/tiny.yaml", "--stages.reduced.steps", str(steps)),
        *("--stages.reduced.global_batch_samples", str(batch), "--data.train", "x"),
    ]
    stage = plan_stages(parse(options)[0].stages, order.epoch_samples)[0]
    rows = [order.rows(order.share(step * batch, batch, 0, 1)).tolist() for step in range(steps)]
    of_batches = [sum(n - 1 for n in Counter(one).values()) for one in rows]
    found = most_repeats(order, stage)
    assert found <= max(of_batches) and (found > 0) == (max(of_batches) > 0)
    lines = check_repeats(order, [stage], 1.0)
    assert len(lines) == (found > 0) and all(f"up to {found}" in line for line in lines)
    if found:
        with pytest.raises(ValueError, match=r"data\.max_repeated_share=0 allows 0"):
            check_repeats(order, [stage], 0.0)


def test_a_run_says_its_repeats_or_is_refused(tiny_dataset, tmp_path):
    refused = train(tmp_path / "no", tiny_dataset, "--data.max_repeated_share", "0",
                    "--stages.reduced.steps", "40")  # fmt: skip
    assert refused.code == 2 and "global_batch_samples=16: up to" in refused.output
    assert not (tmp_path / "no/metrics.jsonl").exists()
    said = trained(tmp_path / "run", tiny_dataset, "--stages.reduced.steps", "40")
    assert "are repeats, each a negative of itself" in said
