"""The softmax contrastive loss (InfoNCE), and the temperature that it owns."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.base.distributed import gather_rows
from pretrain.losses.objective import LossResult, Objective
from pretrain.losses.options import SoftmaxOptions
from pretrain.losses.pairs import CHUNK_SAMPLES, Chunk, Pairs


class SoftmaxLoss(Objective):
    """Symmetric InfoNCE over the global batch: local rows × gathered columns, fp32 logits.

    measures: the share of local pictures whose own caption scored highest, and of captions.
    """

    def __init__(self, options: SoftmaxOptions, chunk_samples: int = CHUNK_SAMPLES) -> None:
        super().__init__()
        self.options, self.chunk_samples = options, chunk_samples
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        both = gather_rows(torch.cat([images, texts], dim=1))
        all_images, all_texts = both.split([images.shape[1], texts.shape[1]], dim=1)
        scale, first_own = self.log_scale.exp(), dist.get_rank() * len(images)
        image_loss, image_right = _CrossEntropy.apply(
            scale * images, all_texts, first_own, self.chunk_samples
        )
        text_loss, text_right = _CrossEntropy.apply(
            scale * texts, all_images, first_own, self.chunk_samples
        )
        return LossResult(
            loss=(image_loss + text_loss) / 2,
            measures={
                "image_to_text_accuracy": image_right,
                "text_to_image_accuracy": text_right,
            },
        )

    @torch.no_grad()
    def clamp(self) -> None:
        if self.options.max_scale is not None:
            self.log_scale.clamp_(0.0, math.log(self.options.max_scale))

    def figures(self) -> dict[str, float]:
        return {"logit_scale": float(self.log_scale.detach().exp())}


class _CrossEntropy(torch.autograd.Function):
    """(mean cross-entropy of the rows with their own columns, share of rows whose own is highest).

    The log-sum-exp of a row is kept as its highest logit so far and the sum of exponentials
    relative to that (Milakov & Gimelshein, arXiv 1805.02867). The two are never added: beside a
    logit of 100 the rest of a pair that is nearly solved would be rounded away. For the same
    reason the sum leaves out the row's own column, whose slope is what the others share.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, first_own: int, chunk_samples: int
    ) -> tuple[Tensor, Tensor]:
        pairs = Pairs(rows=rows, columns=columns, first_own=first_own, chunk_samples=chunk_samples)
        top, others = rows.new_full((len(rows),), -math.inf), rows.new_zeros(len(rows))
        own, best = rows.new_empty(len(rows)), torch.zeros_like(others, dtype=torch.long)
        for chunk in pairs.chunks():
            own[chunk.own_rows] = chunk.own
            highest, place = chunk.logits.max(dim=1)
            best = torch.where(highest > top, place + chunk.start, best)
            higher = torch.maximum(top, highest)
            chunk.own.fill_(-math.inf)
            relative = chunk.logits.sub_(higher[:, None]).exp_()
            others = others * (top - higher).exp() + relative.sum(dim=1)
            top = higher
        log_sum = torch.log1p(others + (own - top).expm1())  # less top
        ctx.save_for_backward(rows, columns, top, log_sum, others * log_sum.neg().exp())
        ctx.first_own, ctx.chunk_samples = first_own, chunk_samples
        right = best == first_own + torch.arange(len(rows), device=rows.device)
        share_right = right.to(rows.dtype).mean()
        ctx.mark_non_differentiable(share_right)
        return ((top - own) + log_sum).mean(), share_right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, columns, top, log_sum, share_others = ctx.saved_tensors

        def slopes(chunk: Chunk) -> Tensor:
            probabilities = chunk.logits.sub_(top[:, None]).sub_(log_sum[:, None]).exp_()
            chunk.own.copy_(-share_others[chunk.own_rows])
            return probabilities

        pairs = Pairs(
            rows=rows,
            columns=columns,
            first_own=ctx.first_own,
            chunk_samples=ctx.chunk_samples,
        )
        return *pairs.gradients(slopes, grads[0] / len(rows)), None, None
