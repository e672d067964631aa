"""The shapes of the published models by name: what a recipe's `model: {preset: B/16}` stands for.

Source: CLIPA's released configurations (clipa_torch, clipa_jax); for g and bigG its t5x branch.
H's and bigG's heads are 80 and 104 wide; the ratios are exact in whole hidden widths: 1408 x 4.3637
is 6144, 1664 x 4.9231 is 8192. A preset has shapes only: pooling, positions and the like are the
recipe's.
"""

from typing import Any, get_args

from pretrain.models.options import PresetName


def _tower(width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> dict[str, float]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}


# (image tower, text tower, width of the shared space)
_SIZES: dict[str, tuple[dict[str, float], dict[str, float], int]] = {
    "S": (_tower(384, 12, 6), _tower(384, 12, 6), 384),
    "B": (_tower(768, 12, 12), _tower(512, 12, 8), 512),
    "L": (_tower(1024, 24, 16), _tower(768, 12, 12), 768),
    "H": (_tower(1280, 32, 16), _tower(1024, 24, 16), 1024),
    "g": (_tower(1408, 40, 16, 4.3637), _tower(1280, 32, 20), 1280),
    "bigG": (_tower(1664, 48, 16, 4.9231), _tower(1280, 32, 20), 1280),
}


def _options(name: str) -> dict[str, Any]:
    size, patch_px = name.split("/")
    image, text, embed_dim = _SIZES[size]
    return {"image": {**image, "patch_px": int(patch_px)}, "text": text, "embed_dim": embed_dim}


# Options of `model` by the preset's name.
PRESETS: dict[str, dict[str, Any]] = {name: _options(name) for name in get_args(PresetName)}
