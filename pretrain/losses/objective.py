"""The objective: a loss over the global batch that owns its parameters, steps, saves and logs
them, so that another loss is one new file beside this one."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.losses.pairs import CHUNK_SAMPLES, Layout


@dataclass(frozen=True, kw_only=True)
class LossResult:
    """Loss of the local rows, and what else is worth a line in the log."""

    loss: Tensor  # () fp32, with gradient
    measures: dict[str, Tensor] = field(default_factory=dict)  # () each, without gradient


def accuracies(right: Tensor) -> dict[str, Tensor]:
    """Measures of (2,) shares: of local pictures whose own caption scored above all others, and of
    captions whose own picture did."""
    return {"image_to_text_accuracy": right[0], "text_to_image_accuracy": right[1]}


class Objective(nn.Module):
    """A loss over the global batch.

    The mean over ranks of what `forward` returns is the loss of the whole batch, and the mean over
    ranks of the gradients that it sends into each rank's towers is that loss's gradient.

    Its parameters (a log scale, a bias) stay outside DeepSpeed on purpose: a bf16 engine would
    keep them in steps of 3 % and clamp a copy that the fp32 master overwrites, and ZeRO-3 would
    partition single numbers. Here they are fp32, the same on every rank, never decayed, and the
    clamped value is the master.
    """

    optimizer: torch.optim.Optimizer
    tf32 = False
    classification_weight: float | None = None

    def __init__(self, chunk_samples: int = CHUNK_SAMPLES) -> None:
        super().__init__()
        self.chunk_samples = chunk_samples

    def layout(self, images: Tensor) -> Layout:
        """Of this rank's pictures against the texts of all ranks."""
        return Layout(
            first_own=dist.get_rank() * len(images),
            chunk_samples=self.chunk_samples,
            tf32=self.tf32,
        )

    def forward(self, images: Tensor, texts: Tensor) -> LossResult:
        """images, texts (B, E) fp32, unit norm, paired row by row."""
        raise NotImplementedError

    def total(self, images: Tensor, texts: Tensor, classified: Tensor | None = None) -> LossResult:
        """What `forward` returns, and where the model has a caption classifier, its weight times
        the mean of what that gave (B,)."""
        result: LossResult = self(images, texts)
        if classified is None or self.classification_weight is None:
            return result
        mean = classified.mean()
        return LossResult(
            loss=result.loss + self.classification_weight * mean,
            measures={**result.measures, "classification_loss": mean.detach()},
        )

    def clamp(self) -> None:
        """Bring the parameters back into their range after an update."""

    def figures(self) -> dict[str, float]:
        """The parameters as people read them, for the log."""
        return {}

    def start(self, *, betas: tuple[float, float], eps: float, tf32: bool) -> None:
        """Make the parameters' optimizer, AdamW, anew: each stage begins with empty moments.

        tf32: whether a GPU may make the loss's matrix products in TF32.
        """
        self.tf32 = tf32
        own: list[Tensor] = [*self.parameters()] or [torch.zeros(0)]  # AdamW takes no empty list
        self.optimizer = torch.optim.AdamW(own, lr=0.0, betas=betas, eps=eps, weight_decay=0.0)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Average the gradients over the ranks, update, clamp. Collective."""
        for name, parameter in self.named_parameters():
            if parameter.grad is None:
                raise RuntimeError(f"step of the objective's {name} without a backward pass")
            if dist.get_world_size() > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.clamp()

    def skip(self) -> None:
        """Forget the gradients of a step that is not made."""
        self.optimizer.zero_grad()

    def training_state(self) -> dict[str, Any]:
        """Parameters and moments, for a resume."""
        return {"parameters": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from what `training_state` gave."""
        self.load_state_dict(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
