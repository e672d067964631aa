"""Which loss a recipe trains with, and the options of each."""

from dataclasses import dataclass, field
from typing import Literal

from pretrain.losses.sigmoid import SigmoidOptions
from pretrain.losses.softmax import SoftmaxOptions


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Which loss, and the options of each."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    """The loss: softmax (InfoNCE, as CLIP and CLIPA) or sigmoid (pairwise, as SigLIP)."""
    softmax: SoftmaxOptions = field(default_factory=SoftmaxOptions)
    """The softmax loss's own options."""
    sigmoid: SigmoidOptions = field(default_factory=SigmoidOptions)
    """The sigmoid loss's own options."""
