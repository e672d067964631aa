"""Options of execution, of the optimizer and of precision. No torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.base.checks import check_between, check_positive

Precision = Literal["auto", "bf16", "autocast", "fp32"]
TrainedIn = Literal["bf16", "autocast", "fp32"]
TowerName = Literal["image", "text"]
WeightsKind = Literal["plain", "ema"]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Which optimizer, with CLIPA's values as defaults (clipa_torch scripts)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Nesterov momentum orthogonalised by five Newton-Schulz steps, scaled by
    sqrt(max(1, rows / columns)), on the matrices of the blocks, with AdamW on all else."""
    beta1: float = 0.9
    """AdamW's first decay rate."""
    beta2: float = 0.95
    """AdamW's second decay rate."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.2
    """Decoupled weight decay of matrices, times the rate of their own optimizer; norms, biases,
    single vectors and CLS are never decayed, tables only with decay_tables."""
    decay_tables: bool = False
    """Decay the tables of tokens and positions too (clipa_torch and open_clip decay all of two
    dimensions and more; CLIPA JAX only what is multiplied with)."""
    first_moment: Literal["fp32", "bf16"] = "fp32"
    """bf16: Adam's first moment is rounded to bf16 after each step, which gives the numbers of
    CLIPA JAX's `mu_dtype` for H/14; it is kept in fp32 still, so no memory is saved."""
    gradient_clip: float | None = None
    """Clip the global gradient norm to this; CLIPA does not clip."""
    muon_momentum: float = 0.95
    """Muon's momentum."""
    muon_lr_scale: float = 1.0
    """Muon's learning rate over AdamW's; updates are orthogonal, so it is larger."""

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("beta1", "beta2", "muon_momentum")}
        check_between({f"optimizer.{name}": value for name, value in shares.items()}, 0, 1)
        check_between({"optimizer.weight_decay": self.weight_decay}, 0, math.inf)
        positive = {name: getattr(self, name) for name in ("eps", "gradient_clip", "muon_lr_scale")}
        check_positive({f"optimizer.{name}": value for name, value in positive.items()})
        if self.kind == "muon" and self.gradient_clip is not None:
            raise ValueError(
                f"optimizer.gradient_clip={self.gradient_clip} with optimizer.kind=muon: DeepSpeed "
                "would clip the orthogonal update, not the gradient; set gradient_clip to null"
            )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How training is executed; nothing here changes what is computed but for rounding."""

    ds_config: Path = Path("ds_configs/zero1.json")
    """DeepSpeed JSON: ZeRO stage, offload, communication."""
    precision: Precision = "auto"
    """bf16: weights, activations and their gradients in bf16, over fp32 masters. autocast: weights
    and gradients in fp32, matrix products in bf16. fp32: all in fp32. auto is bf16 where the
    machine computes in it, else fp32."""
    checkpoint_image: bool = False
    """Recompute the image tower's blocks in the backward pass (less memory, ~1.3x compute)."""
    checkpoint_text: bool = False
    """Recompute the text tower's blocks in the backward pass."""
    checkpoint_every: int = 1
    """Of a tower that recomputes, only every k-th block: 2 keeps half of the activations."""
    compile: bool = False
    """torch.compile both towers (slower start, faster steps on a GPU); not with ZeRO 3."""
    activation_memory_budget: float | None = None
    """Of compiled towers: the share of their activations that is kept for the backward pass, from 0
    to below 1; null keeps all. The compiler computes the cheapest ones again, which costs less time
    than checkpoint_image."""
    reduce_dtype: Literal["bf16", "fp32"] = "bf16"
    """With precision bf16: the type in which gradients are summed between ranks. fp32 sends twice
    the bytes."""
    max_skipped_in_a_row: int = 10
    """Updates that may be skipped one after the other because the loss or the gradient is not
    finite, before the run stops."""
    max_skipped_at_end: int = 0
    """Of these, how many a stage may end on: with more it has diverged, and its weights are not
    saved for the next stage."""

    ema: float | None = None
    """Decay per update of a moving average of the weights, 0.999 say, kept in fp32 beside them and
    begun anew in each stage; null keeps none. It is evaluated, saved and exported beside the
    weights, which train as without it."""

    def __post_init__(self) -> None:
        check_between({"engine.ema": self.ema}, 0, 1)
        if self.checkpoint_every < 1:
            raise ValueError(
                f"engine.checkpoint_every={self.checkpoint_every}: 1 for every block, or more"
            )
        check_between({"engine.activation_memory_budget": self.activation_memory_budget}, 0, 1)
        if self.activation_memory_budget is not None and not self.compile:
            raise ValueError(
                f"engine.activation_memory_budget={self.activation_memory_budget} without "
                "engine.compile, which it is for: set engine.compile to true"
            )
        for name in ("max_skipped_in_a_row", "max_skipped_at_end"):
            check_between({f"engine.{name}": getattr(self, name)}, 0, math.inf)
