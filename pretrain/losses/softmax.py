"""The softmax contrastive loss (InfoNCE), and the temperature that it owns."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.base.distributed import gather_rows
from pretrain.losses.objective import LossResult, Objective, accuracies
from pretrain.losses.options import SoftmaxOptions
from pretrain.losses.pairs import CHUNK_SAMPLES, Chunk, Layout, Others, Pairs


class SoftmaxLoss(Objective):
    """Symmetric InfoNCE over the global batch, fp32 logits."""

    def __init__(self, options: SoftmaxOptions, chunk_samples: int = CHUNK_SAMPLES) -> None:
        super().__init__(chunk_samples)
        self.options = options
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        loss, right = _CrossEntropies.apply(
            self.log_scale.exp() * images, gather_rows(texts), self.layout(images)
        )
        return LossResult(loss=loss, measures=accuracies(right))

    @torch.no_grad()
    def clamp(self) -> None:
        if self.options.max_scale is not None:
            self.log_scale.clamp_(0.0, math.log(self.options.max_scale))

    def figures(self) -> dict[str, float]:
        return {"logit_scale": float(self.log_scale.detach().exp())}


class _CrossEntropies(torch.autograd.Function):
    """(mean of two cross-entropies, of the rows with their own columns and of these columns with
    their own rows, over all rows of all ranks; the shares of rows and columns that are right).

    The log-sum-exp of a row or column is kept as its highest logit and the sum of exponentials
    relative to that (Milakov & Gimelshein, arXiv 1805.02867). The two are never added: beside a
    logit of 100 the rest of a pair that is nearly solved would be rounded away. For the same
    reason the sum leaves out the own pair, whose slope is what the others share.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        pairs = Pairs(rows=rows, columns=columns, layout=layout)
        tops, own = Others(pairs), rows.new_empty(len(rows))
        row_sum, column_sum = rows.new_zeros(len(rows)), rows.new_empty(len(columns))
        for chunk in pairs.chunks():
            own[chunk.own_rows] = chunk.own
            before = tops.row_top
            tops.see(chunk)
            relative = (chunk.logits - tops.row_top[:, None]).exp_()
            row_sum = row_sum * (before - tops.row_top).exp() + relative.sum(dim=1)
            relative = chunk.logits.sub_(tops.column_top[chunk.here]).exp_()
            column_sum[chunk.here] = relative.sum(dim=0)
        before = tops.column_top.clone()
        right = tops.agree(own)
        mine = slice(layout.first_own, layout.first_own + len(rows))
        both = column_sum.new_zeros(2, len(columns))  # sums of exponentials, and own logits
        both[0] = column_sum * (before - tops.column_top).exp()
        both[1, mine] = own
        if dist.get_world_size() > 1:
            dist.all_reduce(both)
        row_loss, *of_rows = _log_sums(own, tops.row_top, row_sum)
        column_loss, *of_columns = _log_sums(both[1], tops.column_top, both[0])
        ctx.save_for_backward(rows, columns, *of_rows, *of_columns)
        ctx.layout = layout
        ctx.mark_non_differentiable(right)
        return (row_loss + column_loss[mine]).mean() / 2, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, columns, row_top, row_log, row_share, top, log, share = ctx.saved_tensors

        def slopes(chunk: Chunk) -> Tensor:
            of_columns = (chunk.logits - top[chunk.here]).sub_(log[chunk.here]).exp_()
            chunk.logits.sub_(row_top[:, None]).sub_(row_log[:, None]).exp_().add_(of_columns)
            chunk.own.copy_(-row_share[chunk.own_rows] - share[chunk.own_columns])
            return chunk.logits

        pairs = Pairs(rows=rows, columns=columns, layout=ctx.layout)
        return *pairs.gradients(slopes, grads[0] / (2 * len(rows))), None


def _log_sums(own: Tensor, top: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, highest logit, log of the sum of exponentials less that, and the others' share
    of the sum: (N,) each.

    top, others: the highest logit but the own, and the sum of exponentials relative to it.
    """
    highest = torch.maximum(own, top)
    others = others * (top - highest).exp()
    log_sum = torch.log1p(others + (own - highest).expm1())
    return (highest - own) + log_sum, highest, log_sum, others * log_sum.neg().exp()
