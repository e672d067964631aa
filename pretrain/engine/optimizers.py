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

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.options import OptimizerOptions
from pretrain.models.clip import CLIP

# Never decayed, though they are no vectors by their shape. With the tables and all of one dimension
# these are what CLIPA JAX leaves out (it decays kernels alone; big_vision's pooling probe is none).
_VECTORS = frozenset({"image.vit.cls_token", "image.vit.attn_pool.latent"})


def parameter_groups(
    model: CLIP, options: OptimizerOptions, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups for AdamW or DeepSpeed's MuonWithAuxAdam, each with `lr_scale` over the schedule.

    layer_decay: factor of the rate for every layer that a parameter lies below the top, as BEiT
    (arXiv 2106.08254) and FT-CLIP (arXiv 2212.06138) tune: 1 for final norms, pooling and
    projections, layer_decay for a tower's last block, layer_decay^(depth + 1) for its embeddings.
    Parameters without a gradient are in no group. Sets `use_muon` on every other one when Muon is
    asked for, as DeepSpeed's ZeRO reads it there.
    """
    maps, matrices, below = _maps(model), _block_matrices(model), _layers_below_top(model)
    decayed = maps | _tables(model) if options.decay_tables else maps
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        use_muon = options.kind == "muon" and parameter in matrices
        if options.kind == "muon":
            parameter.use_muon = use_muon  # type: ignore[attr-defined]
        layers = 0 if layer_decay is None else below.get(parameter, 0)
        # Muon's last, and from the top of the towers down: the same order on every rank.
        key = (layers, use_muon, parameter not in decayed)
        group = groups.setdefault(key, {"params": []})
        group["params"].append(parameter)
    for (layers, use_muon, is_plain), group in groups.items():
        group.update(
            lr=0.0,
            lr_scale=(layer_decay or 1.0) ** layers,
            weight_decay=0.0 if is_plain else options.weight_decay,
        )
        if options.kind == "muon":
            group["use_muon"] = use_muon
        if use_muon:
            group["lr_scale"] *= options.muon_lr_scale
            group["momentum"] = options.muon_momentum
        else:
            group.update(betas=(options.beta1, options.beta2), eps=options.eps)
    return [groups[key] for key in sorted(groups)]


def _layers_below_top(model: CLIP) -> dict[Tensor, int]:
    """How many layers lie above a parameter in its tower; those that are missing lie at the top."""
    found: dict[Tensor, int] = {}
    for tower in (model.image, model.text):
        depth = len(tower.blocks)
        found.update(dict.fromkeys(tower.embedding_parameters, depth + 1))
        for index, block in enumerate(tower.blocks):
            found.update(dict.fromkeys(block.parameters(), depth - index))
    return found


def _tables(model: CLIP) -> set[Tensor]:
    """What is looked up or added, a row a token or a place."""
    words = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return words | {model.image.positions}


def _maps(model: CLIP) -> set[Tensor]:
    """What is multiplied with, neither looked up nor added."""
    named = model.named_parameters()
    matrices: set[Tensor] = {p for name, p in named if p.ndim >= 2 and name not in _VECTORS}
    return matrices - _tables(model)


def round_first_moments(optimizer: torch.optim.Optimizer) -> None:
    """From now on round Adam's first moment to bf16 after each step, the nearest value of its own.

    optax (`mu_dtype`) too steps by the moment in fp32 and rounds what it keeps of it. ZeRO steps
    its optimizer once a group, whose parameters alone are in it then.
    """

    def round_them(stepped: torch.optim.Optimizer, *_: Any) -> None:
        for group in stepped.param_groups:
            for parameter in group["params"]:
                if (moment := stepped.state.get(parameter, {}).get("exp_avg")) is not None:
                    moment.copy_(moment.bfloat16())

    optimizer.register_step_post_hook(round_them)


def _block_matrices(model: CLIP) -> set[Tensor]:
    """The linear maps of the transformer blocks, which Muon steps."""
    return {
        module.weight
        for block in (*model.image.blocks, *model.text.blocks)
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
