"""The weights of transformers' CLIPModel and SiglipModel by our names."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, cat

from pretrain.export.open_clip import BLOCK_NAMES
from pretrain.export.source import refuse, taking
from pretrain.models.clip import IMAGE_POSITIONS
from pretrain.models.starting import from_transformers

Take = Callable[[str], Tensor]
_AT = "vision_model."
_KINDS = ("weight", "bias")


def weights_by_our_names(
    theirs: dict[str, Tensor], depth: int, file: Path, *, siglip: bool
) -> dict[str, Tensor]:
    """Theirs, without the loss's, by our names, fp32; depth: blocks of the image tower.

    ValueError names a weight that is missing, or that has no place.
    """
    rest = {n: w.float() for n, w in theirs.items() if not n.endswith("position_ids")}
    found = from_transformers(rest)
    head = "text_model.head."
    rest = {n: w for n, w in rest.items() if n.startswith(head) or not n.startswith("text_model.")}

    take = taking(rest, file)
    patches = f"{_AT}embeddings.patch_embedding."
    found |= {
        "image.vit.patch_embed.proj.weight": take(patches + "weight"),
        IMAGE_POSITIONS: take(f"{_AT}embeddings.position_embedding.weight"),
        **_blocks(take, depth),
    }
    if siglip:
        found["image.vit.patch_embed.proj.bias"] = take(patches + "bias")
        found |= {f"text_projection.{kind}": take(head + kind) for kind in _KINDS}
        found |= _pooling(take)
    else:
        found |= {
            "image.vit.cls_token": take(f"{_AT}embeddings.class_embedding")[None, None],
            "image_projection.weight": take("visual_projection.weight"),
            "text_projection.weight": take("text_projection.weight"),
        }
        for kind in _KINDS:
            found[f"image.vit.norm_pre.{kind}"] = take(f"{_AT}pre_layrnorm.{kind}")
    if rest:
        refuse(file, [f"weight {min(rest)}"])
    return found


def _blocks(take: Take, depth: int) -> dict[str, Tensor]:
    """The image tower's blocks and the norm behind them."""
    found = {}
    for kind in _KINDS:
        found[f"image.vit.norm.{kind}"] = take(f"{_AT}post_layernorm.{kind}")
        for place in range(depth):
            ours, block = f"image.vit.blocks.{place}", f"{_AT}encoder.layers.{place}"
            for timms, name in BLOCK_NAMES.values():
                found[f"{ours}.{timms}.{kind}"] = take(f"{block}.{name}.{kind}")
            parts = [take(f"{block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            found[f"{ours}.attn.qkv.{kind}"] = cat(parts)
    return found


def _pooling(take: Take) -> dict[str, Tensor]:
    """SigLIP's pooling head. Its q, k and v are one matrix; ours are q, and k with v."""
    ours, theirs = "image.vit.attn_pool", f"{_AT}head"
    found = {f"{ours}.latent": take(f"{theirs}.probe")}
    names = {"norm": "layernorm", "proj": "attention.out_proj", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
    for kind in _KINDS:
        joint = take(f"{theirs}.attention.in_proj_{kind}")
        width = len(joint) // 3
        found[f"{ours}.q.{kind}"] = joint[:width].clone()
        found[f"{ours}.kv.{kind}"] = joint[width:].clone()
        found |= {f"{ours}.{own}.{kind}": take(f"{theirs}.{name}.{kind}")
                  for own, name in names.items()}  # fmt: skip
    return found
