"""open_clip's timm image towers of SigLIP's kind, by our options and names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.export.source import refuse, square
from pretrain.models.clip import IMAGE_POSITIONS
from pretrain.models.image_tower import ImageTower
from pretrain.models.options import Gelu, ImageTowerOptions

_AT, _POSITIONS = "visual.trunk.", "pos_embed"


def timm_options(vision: dict[str, Any], embed_dim: int, path: Path) -> ImageTowerOptions:
    """Of a vision_cfg with timm_model_name: a VisionTransformer without CLS, pooled by attention,
    without a projection. ValueError names any other choice."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    name = vision["timm_model_name"]
    named = f"vision_cfg.timm_model_name={name!r}"
    wanted = {"timm_pool": "map", "timm_proj": "none"}
    refuse(path, [f"{named} with vision_cfg.{option}={vision[option]!r}"
                  for option, value in wanted.items() if vision[option] != value])  # fmt: skip
    if not timm.is_model(name):
        refuse(path, [f"{named} (unknown to the installed timm)"])
    with torch.device("meta"):
        trunk: Any = timm.create_model(name, num_classes=0, global_pool="map")
    if not isinstance(trunk, VisionTransformer) or trunk.cls_token is not None:
        refuse(path, [f"{named} (no vision transformer without CLS)"])
    image_px = square(vision["image_size"], "vision_cfg.image_size", path)
    built_px = square(trunk.patch_embed.img_size, "timm's img_size", path)
    if (built_px, trunk.embed_dim) != (image_px, embed_dim):
        refuse(path, [f"{named} ({built_px} px, {trunk.embed_dim} wide) with "
                      f"vision_cfg.image_size={image_px} and embed_dim={embed_dim}"])  # fmt: skip
    mlp = trunk.blocks[0].mlp
    options = ImageTowerOptions(
        width=trunk.embed_dim,
        depth=len(trunk.blocks),
        heads=trunk.blocks[0].attn.num_heads,
        # Half a unit more, so that it is the same whole width however the ratio is rounded.
        mlp_ratio=(mlp.fc1.out_features + 0.5) / trunk.embed_dim,
        patch_px=square(trunk.patch_embed.patch_size, "timm's patch_size", path),
        pool="attention",
        cls_token=False,
        positions="learned",
        pre_norm=False,
        patch_bias=True,
        gelu=_gelu(mlp.act, named, path),
        norm_eps=trunk.norm.eps,
    )
    with torch.device("meta"):
        ours = ImageTower(options, image_px=image_px, explicit_attention=False)
    other = set(ours.vit.state_dict()) ^ (set(trunk.state_dict()) - {_POSITIONS})
    if other:
        refuse(path, [f"{named} (its weight {min(other)})"])
    return options


def _gelu(module: nn.Module, named: str, path: Path) -> Gelu:
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "exact"
    if type(module).__name__ == "GELUTanh":
        return "tanh"
    refuse(path, [f"{named} (its activation {module})"])
    raise AssertionError


def timm_weights(theirs: dict[str, Tensor], take: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The image tower's weights by our names, each taken out of `theirs` by `take`."""
    found = {
        f"image.vit.{name.removeprefix(_AT)}": take(name)
        for name in list(theirs)
        if name.startswith(_AT) and name != _AT + _POSITIONS
    }
    return {**found, IMAGE_POSITIONS: take(_AT + _POSITIONS)[0]}
