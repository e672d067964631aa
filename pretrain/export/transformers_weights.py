"""The weights of transformers' CLIPModel and SiglipModel by our names."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, cat

from pretrain.export.foreign import read_config
from pretrain.export.open_clip import BLOCK_NAMES
from pretrain.export.source import refuse, take_from
from pretrain.models.clip import IMAGE_POSITIONS
from pretrain.models.starting import from_transformers, read_tensors

Take = Callable[[str], Tensor]
# In transformers' own order of preference.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"  # of the file that says which shard holds a tensor
_AT = "vision_model."
_KINDS = ("weight", "bias")


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """A folder's tensors, of one file or of all its shards, and the file or the shards' index."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return read_tensors(folder / name, "SOURCE"), folder / name
        index = folder / (name + _INDEX_SUFFIX)
        if index.is_file():
            return _read_shards(index, Path(name).suffix), index
    raise FileNotFoundError(
        f"{folder} has none of {', '.join(_WEIGHTS)}, nor {_WEIGHTS[0]}{_INDEX_SUFFIX}: put the "
        "weights there"
    )


def _read_shards(index: Path, suffix: str) -> dict[str, Tensor]:
    """ValueError names a shard outside the folder, or one that is missing or not the index's."""
    places = read_config(index, "weight_map")["weight_map"]
    shards = sorted(set(map(str, places.values())))
    for shard in shards:
        # A path could read any file of this machine.
        if Path(shard).name != shard or "\\" in shard or Path(shard).suffix != suffix:
            raise ValueError(
                f"{index} names the shard {shard!r}, not a {suffix} file in its folder: get the "
                "whole model again"
            )
    found: dict[str, Tensor] = {}
    for shard in shards:
        tensors = read_tensors(index.with_name(shard), "SOURCE")
        wanted = {name for name, place in places.items() if place == shard}
        if other := wanted ^ tensors.keys():
            raise ValueError(
                f"{index} and {shard} disagree on the tensor {min(other)}: get the whole model "
                "again"
            )
        found |= tensors
    return found


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

    take = take_from(rest, file)
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
