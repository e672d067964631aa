"""The softmax contrastive loss (InfoNCE), and the temperature that it owns."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import gather_rows
from pretrain.losses.objective import LossResult, Objective


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Softmax contrastive loss (InfoNCE) and its learned temperature."""

    initial_scale: float = 1 / 0.07
    """Logit scale at the start (CLIP, arXiv 2103.00020: 1 / 0.07)."""
    max_scale: float = 100.0
    """The logit scale never exceeds this (CLIP: 100)."""

    def __post_init__(self) -> None:
        if not 1 <= self.initial_scale <= self.max_scale < math.inf:
            raise ValueError(
                f"loss.initial_scale={self.initial_scale}, loss.max_scale={self.max_scale}: needs "
                "1 <= initial_scale <= max_scale"
            )


class ContrastiveLoss(Objective):
    """Symmetric InfoNCE over the global batch: local rows × gathered columns, fp32 logits.

    measures: the share of local pictures whose own caption scored highest, and of captions.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.options = options
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        local = len(images)
        both = gather_rows(torch.cat([images, texts], dim=1))
        all_images, all_texts = both.split([images.shape[1], texts.shape[1]], dim=1)
        targets = dist.get_rank() * local + torch.arange(local, device=images.device)
        scale = self.log_scale.exp()
        to_text = scale * images @ all_texts.T
        to_image = scale * texts @ all_images.T
        return LossResult(
            loss=(F.cross_entropy(to_text, targets) + F.cross_entropy(to_image, targets)) / 2,
            measures={
                "image_to_text_accuracy": (to_text.argmax(1) == targets).float().mean(),
                "text_to_image_accuracy": (to_image.argmax(1) == targets).float().mean(),
            },
        )

    @torch.no_grad()
    def clamp(self) -> None:
        self.log_scale.clamp_(0.0, math.log(self.options.max_scale))

    def figures(self) -> dict[str, float]:
        return {"logit_scale": float(self.log_scale.detach().exp())}
