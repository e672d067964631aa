"""Optimizers: their options, and parameter groups by rule.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon), as DeepSpeed computes it, for each matrix W
with gradient G, momentum m and rate lr = schedule × muon_lr_scale:

    M ← m M + (1 - m) G;  U = NewtonSchulz5(m M + (1 - m) G)                        (Nesterov)
    W ← (1 - lr × weight_decay) W - lr × sqrt(max(1, rows / columns)) × U

NewtonSchulz5 is five steps X ← 3.4445 X + (-4.7750 XXᵀ + 2.0315 (XXᵀ)²) X from its argument over
its Frobenius norm, in fp16 where the machine has it, else in fp32. A matrix is one nn.Linear of a
block: the image tower's q, k and v are one fused matrix, the text tower's are three, orthogonal one
by one. torch.optim.Muon has the same rule with Newton-Schulz in bf16.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from pretrain.checks import check_between, check_positive
from pretrain.models.clip import CLIP

# Never decayed, though their shape is a matrix's: tables and single vectors, not maps. With every
# nn.Embedding and all of one dimension these are what CLIPA JAX leaves out (it decays kernels
# alone; big_vision's pooling probe is none).
_UNDECAYED = frozenset({"image.positions", "image.vit.cls_token", "image.vit.attn_pool.latent"})


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
    tables and CLS are never decayed."""
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


def parameter_groups(model: CLIP, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Groups for AdamW or DeepSpeed's MuonWithAuxAdam, each with `lr_scale` over the schedule.

    Sets `use_muon` on every parameter when Muon is asked for, as DeepSpeed's ZeRO reads it there.
    """
    muon: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    maps, matrices = _decayed(model), _block_matrices(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        use_muon = options.kind == "muon" and parameter in matrices
        if options.kind == "muon":
            parameter.use_muon = use_muon  # type: ignore[attr-defined]
        (muon if use_muon else decayed if parameter in maps else plain).append(parameter)
    adam: dict[str, Any] = dict(
        lr=0.0, betas=(options.beta1, options.beta2), eps=options.eps, lr_scale=1.0
    )
    groups: list[dict[str, Any]] = [
        dict(params=decayed, weight_decay=options.weight_decay, **adam),
        dict(params=plain, weight_decay=0.0, **adam),
    ]
    if options.kind == "muon":
        groups = [dict(use_muon=False, **group) for group in groups]
        groups.append(
            dict(
                params=muon,
                lr=0.0,
                momentum=options.muon_momentum,
                weight_decay=options.weight_decay,
                use_muon=True,
                lr_scale=options.muon_lr_scale,
            )
        )
    return [group for group in groups if group["params"]]


def _decayed(model: CLIP) -> set[Tensor]:
    """The maps: what is multiplied with, neither looked up nor added."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name not in _UNDECAYED and parameter not in tables
    }


def _block_matrices(model: CLIP) -> set[Tensor]:
    """The linear maps of the transformer blocks, which Muon steps."""
    return {
        module.weight
        for block in (*model.image.blocks, *model.text.blocks)
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
