"""Which loss a recipe trains with, and the options of each."""

import math
import sys
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SoftmaxOptions:
    """Softmax contrastive loss (InfoNCE) and its learned temperature."""

    initial_scale: float = 1 / 0.07
    """Softmax: logit scale at the start (CLIP, arXiv 2103.00020: 1 / 0.07)."""
    max_scale: float | None = 100.0
    """Softmax: the logit scale never exceeds this nor falls below 1 (CLIP: 100); null lets it go
    where it goes (CLIPA JAX)."""

    def __post_init__(self) -> None:
        limit = sys.float_info.max if self.max_scale is None else self.max_scale
        if not 1 <= self.initial_scale <= limit < math.inf:
            raise ValueError(
                f"loss.softmax.initial_scale={self.initial_scale}, loss.softmax.max_scale="
                f"{self.max_scale}: needs 1 <= initial_scale <= max_scale"
            )


@dataclass(frozen=True, kw_only=True)
class SigmoidOptions:
    """Pairwise sigmoid loss (SigLIP) and its learned temperature and bias."""

    initial_scale: float = 10.0
    """Sigmoid: logit scale at the start (SigLIP, arXiv 2303.15343: 10); it has no upper limit."""
    initial_bias: float = -10.0
    """Sigmoid: logit bias at the start (SigLIP: -10, as nearly all pairs are negative)."""

    def __post_init__(self) -> None:
        if not 0 < self.initial_scale < math.inf:
            raise ValueError(
                f"loss.sigmoid.initial_scale={self.initial_scale}: give a positive number"
            )
        if not math.isfinite(self.initial_bias):
            raise ValueError(f"loss.sigmoid.initial_bias={self.initial_bias}: give a number")


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Which loss, and the options of each."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    """The loss: softmax (InfoNCE, as CLIP and CLIPA) or sigmoid (pairwise, as SigLIP)."""
    softmax: SoftmaxOptions = field(default_factory=SoftmaxOptions)
    """The softmax loss's own options."""
    sigmoid: SigmoidOptions = field(default_factory=SigmoidOptions)
    """The sigmoid loss's own options."""
    classification_weight: float | None = None
    """Adds caption classification with this weight (SuperCLIP, arXiv 2512.14480: 1): a linear layer
    on the image tower predicts the token ids of the caption, rare ids above all. It is trained with
    the model and not exported; null leaves it out."""

    def __post_init__(self) -> None:
        weight = self.classification_weight
        if weight is not None and not 0 < weight < math.inf:
            raise ValueError(
                f"loss.classification_weight={weight}: give a positive number, or null"
            )
