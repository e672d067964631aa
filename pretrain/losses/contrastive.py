"""The contrastive loss, and the temperature that it owns."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import gather_rows


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Softmax contrastive loss (InfoNCE) and its learned temperature."""

    initial_scale: float = 1 / 0.07
    """Logit scale at the start (CLIP, arXiv 2103.00020: 1 / 0.07)."""
    max_scale: float = 100.0
    """The logit scale never exceeds this (CLIP: 100)."""


@dataclass(frozen=True, kw_only=True)
class LossResult:
    """Loss of the local rows and how many of them were matched right."""

    loss: Tensor  # () fp32, with gradient
    image_to_text_accuracy: Tensor  # () share of local pictures whose caption scored highest
    text_to_image_accuracy: Tensor


class ContrastiveLoss(nn.Module):
    """Symmetric InfoNCE over the global batch: local rows × gathered columns, fp32 logits.

    The mean over ranks of this loss is the loss of the whole batch, and the mean over ranks of
    the gradients that it sends into each rank's towers is that loss's gradient.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.options = options
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        """images, texts (B, E) fp32, unit norm, paired row by row."""
        local = len(images)
        both = gather_rows(torch.cat([images, texts], dim=1))
        all_images, all_texts = both.split([images.shape[1], texts.shape[1]], dim=1)
        targets = dist.get_rank() * local + torch.arange(local, device=images.device)
        scale = self.log_scale.exp()
        to_text = scale * images @ all_texts.T
        to_image = scale * texts @ all_images.T
        return LossResult(
            loss=(F.cross_entropy(to_text, targets) + F.cross_entropy(to_image, targets)) / 2,
            image_to_text_accuracy=(to_text.argmax(1) == targets).float().mean(),
            text_to_image_accuracy=(to_image.argmax(1) == targets).float().mean(),
        )


class Temperature:
    """The optimizer of the loss's own parameter: AdamW in fp32, no decay, clamped.

    It stays outside DeepSpeed on purpose. A bf16 engine would keep the log scale in steps of 3 %
    and clamp a copy that the fp32 master overwrites; ZeRO-3 would partition one number. Here it is
    one fp32 number, the same in every stage, and the clamped value is the master.
    """

    def __init__(self, loss: ContrastiveLoss, *, betas: tuple[float, float], eps: float) -> None:
        self.loss = loss
        self.optimizer = torch.optim.AdamW(
            loss.parameters(), lr=0.0, betas=betas, eps=eps, weight_decay=0.0
        )

    @property
    def scale(self) -> float:
        """The logit scale that the loss multiplies by."""
        return float(self.loss.log_scale.detach().exp())

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Average the gradient over the ranks, update, clamp to [0, ln max_scale]."""
        gradient = self.loss.log_scale.grad
        if gradient is None:
            raise RuntimeError("temperature step without a backward pass before it")
        if dist.get_world_size() > 1:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss.log_scale.clamp_(0.0, math.log(self.loss.options.max_scale))

    def state_dict(self) -> dict[str, Any]:
        return {"log_scale": self.loss.log_scale.detach().clone(), **self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss.log_scale.copy_(state["log_scale"])
        self.optimizer.load_state_dict({k: state[k] for k in ("state", "param_groups")})
