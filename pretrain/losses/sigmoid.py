"""The pairwise sigmoid loss (SigLIP, arXiv 2303.15343), with the temperature and bias it owns."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.base.distributed import gather_rows
from pretrain.losses.objective import LossResult, Objective, accuracies
from pretrain.losses.options import SigmoidOptions
from pretrain.losses.pairs import CHUNK_SAMPLES, Chunk, Layout, Others, Pairs


class SigmoidLoss(Objective):
    """-Σ log sigmoid(±logit) over all pairs of the global batch, divided by its samples."""

    def __init__(self, options: SigmoidOptions, chunk_samples: int = CHUNK_SAMPLES) -> None:
        super().__init__(chunk_samples)
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))
        self.bias = nn.Parameter(torch.tensor([options.initial_bias]))

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        loss, right = _PairwiseSigmoid.apply(
            self.log_scale.exp() * images, gather_rows(texts), self.bias, self.layout(images)
        )
        return LossResult(loss=loss, measures=accuracies(right))

    def figures(self) -> dict[str, float]:
        return {
            "logit_scale": float(self.log_scale.detach().exp()),
            "logit_bias": float(self.bias.detach()),
        }


class _PairwiseSigmoid(torch.autograd.Function):
    """(Σ over pairs of -log sigmoid(±logit) / B, the shares of rows and columns that are right)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, bias: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        pairs = Pairs(rows=rows, columns=columns, layout=layout)
        tops, own, sums = Others(pairs), rows.new_empty(len(rows)), rows.new_zeros(len(rows))
        for chunk in pairs.chunks():
            chunk.logits.add_(bias)
            mine = own[chunk.own_rows] = chunk.own.clone()
            tops.see(chunk)
            chunk.own.copy_(-mine)
            sums += F.softplus(chunk.logits).sum(dim=1)
        right = tops.agree(own)
        ctx.save_for_backward(rows, columns, bias)
        ctx.layout = layout
        ctx.mark_non_differentiable(right)
        return sums.mean(), right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
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

        pairs = Pairs(rows=rows, columns=columns, layout=ctx.layout)
        row_gradient, column_gradient = pairs.gradients(slopes, factor)
        return row_gradient, column_gradient, bias_gradient * factor, None
