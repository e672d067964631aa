"""The pairwise sigmoid loss (SigLIP, arXiv 2303.15343), with the temperature and bias it owns."""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.base.distributed import gather_rows
from pretrain.losses.objective import LossResult, Objective
from pretrain.losses.options import SigmoidOptions
from pretrain.losses.pairs import CHUNK_SAMPLES, Chunk, Pairs


class SigmoidLoss(Objective):
    """-Σ log sigmoid(±logit) over all pairs of the global batch, divided by its samples.

    Each pair is computed once, by the rank of its picture, so only texts are gathered.
    measures: the share of local pictures whose own caption scored highest, and of captions.
    """

    def __init__(self, options: SigmoidOptions, chunk_samples: int = CHUNK_SAMPLES) -> None:
        super().__init__()
        self.chunk_samples = chunk_samples
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))
        self.bias = nn.Parameter(torch.tensor([options.initial_bias]))

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        first_own = dist.get_rank() * len(images)
        loss, row_best, column_top, column_best = _PairwiseSigmoid.apply(
            self.log_scale.exp() * images,
            gather_rows(texts),
            self.bias,
            first_own,
            self.chunk_samples,
        )
        own = first_own + torch.arange(len(images), device=images.device)
        text_best = _best_of_ranks(column_top, column_best)[own]
        return LossResult(
            loss=loss,
            measures={
                "image_to_text_accuracy": (row_best == own).float().mean(),
                "text_to_image_accuracy": (text_best == own).float().mean(),
            },
        )

    def figures(self) -> dict[str, float]:
        return {
            "logit_scale": float(self.log_scale.detach().exp()),
            "logit_bias": float(self.bias.detach()),
        }


def _best_of_ranks(top: Tensor, best: Tensor) -> Tensor:
    """(G,) the row of the global batch with each column's highest logit, the first of equals.
    Collective.

    top, best (G,): the highest logit among this rank's rows, and whose it is.
    """
    highest = top.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    found = torch.where(top == highest, best, len(best))
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return found


class _PairwiseSigmoid(torch.autograd.Function):
    """(Σ over pairs of -log sigmoid(±logit) / B, best column of each row, highest logit of each
    column, its row in the global batch)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, bias: Tensor, first_own: int, chunk_samples: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pairs = Pairs(rows=rows, columns=columns, first_own=first_own, chunk_samples=chunk_samples)
        top, best = rows.new_full((len(rows),), -math.inf), rows.new_zeros(len(rows)).long()
        sums, column_tops, column_bests = torch.zeros_like(top), [], []
        for chunk in pairs.chunks():
            logits = chunk.logits.add_(bias)
            highest, place = logits.max(dim=1)
            best = torch.where(highest > top, place + chunk.start, best)
            top = torch.maximum(top, highest)
            column_top, row = logits.max(dim=0)
            column_tops.append(column_top)
            column_bests.append(row + first_own)
            chunk.own.neg_()
            sums += F.softplus(logits).sum(dim=1)
        ctx.save_for_backward(rows, columns, bias)
        ctx.first_own, ctx.chunk_samples = first_own, chunk_samples
        found = best, torch.cat(column_tops), torch.cat(column_bests)
        ctx.mark_non_differentiable(*found)
        return sums.mean(), *found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, columns, bias = ctx.saved_tensors
        factor = grads[0] / len(rows)
        bias_gradient = torch.zeros_like(bias)

        def slopes(chunk: Chunk) -> Tensor:
            # Own pairs with their sign turned on both sides of the sigmoid: sigmoid(x) - 1 would
            # round away what is left of a pair that is nearly right.
            chunk.logits.add_(bias)
            chunk.own.neg_()
            chunk.logits.sigmoid_()
            chunk.own.neg_()
            bias_gradient.add_(chunk.logits.sum(dim=1).sum())
            return chunk.logits

        pairs = Pairs(
            rows=rows,
            columns=columns,
            first_own=ctx.first_own,
            chunk_samples=ctx.chunk_samples,
        )
        row_gradient, column_gradient = pairs.gradients(slopes, factor)
        return row_gradient, column_gradient, bias_gradient * factor, None, None
