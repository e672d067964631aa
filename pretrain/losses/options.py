"""Which loss a recipe trains with, and the options of each."""

from dataclasses import dataclass, field
from typing import Literal

from pretrain.losses.sigmoid import SigmoidOptions
from pretrain.losses.softmax import SoftmaxOptions


@dataclass(frozen=True, kw_only=True)
class LossOptions(SoftmaxOptions):
    """Which loss, and the options of each; those of the softmax loss stand here themselves, where
    every run folder has them."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    """The loss: softmax (InfoNCE, as CLIP and CLIPA) or sigmoid (pairwise, as SigLIP)."""
    sigmoid: SigmoidOptions = field(default_factory=SigmoidOptions)
    """The sigmoid loss's own options."""
