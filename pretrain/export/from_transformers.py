"""A folder of transformers' CLIPModel, by our options and names."""

import json
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, cat

from pretrain.export.open_clip import BLOCK_NAMES
from pretrain.export.source import OUR_RESIZE, Source, fast_tokenizer, refuse, square
from pretrain.models.clip import IMAGE_POSITIONS, ModelOptions
from pretrain.models.image_tower import Gelu, ImageTowerOptions
from pretrain.models.starting import CONFIG_FILE, from_transformers, read_tensors
from pretrain.models.text_tower import TextTowerOptions
from pretrain.tokens.options import TokenOptions

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PICTURES = "preprocessor_config.json"
_GELU: dict[str, Gelu] = {
    "gelu": "exact", "quick_gelu": "quick", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh",
}  # fmt: skip
_OLD_EOS = 2  # transformers pools at the highest id where the config says so
_BICUBIC = 3  # Pillow's number


def read_transformers(folder: Path) -> Source:
    """ValueError names what our towers cannot express, or what the folder lacks."""
    from transformers import CLIPConfig

    path = folder / CONFIG_FILE
    kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if kind == "siglip":
        refuse(path, ["model_type='siglip' (its image tower has no CLS token)"])
    if kind != "clip":
        refuse(path, [f"model_type={kind!r}"])
    config: Any = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    sides = {"vision_config": vision, "text_config": text}
    refuse(path, [f"{n}.hidden_act={s.hidden_act!r}" for n, s in sides.items()
                  if s.hidden_act not in _GELU])  # fmt: skip
    if vision.num_channels != 3:
        refuse(path, [f"vision_config.num_channels={vision.num_channels}"])

    def common(side: Any) -> dict[str, Any]:
        ratio = side.intermediate_size / side.hidden_size
        if int(side.hidden_size * ratio) != side.intermediate_size:
            ratio = (side.intermediate_size + 0.5) / side.hidden_size
        return {
            "width": side.hidden_size,
            "depth": side.num_hidden_layers,
            "heads": side.num_attention_heads,
            "mlp_ratio": ratio,
            "gelu": _GELU[side.hidden_act],
            "norm_eps": side.layer_norm_eps,
        }

    options = ModelOptions(
        image=ImageTowerOptions(
            **common(vision),
            patch_px=square(vision.patch_size, "vision_config.patch_size", path),
            pool="cls",
            positions="learned",
            cls_position=True,
            pre_norm=True,
            patch_bias=False,
        ),
        text=TextTowerOptions(
            **common(text),
            causal=True,
            pool="highest_id" if text.eos_token_id == _OLD_EOS else "eos",
            specials="bos_eos",
        ),
        embed_dim=config.projection_dim,
    )
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(_WEIGHTS)}: put one there")
    theirs = read_tensors(file, "SOURCE")
    return Source(
        options=options,
        tokens=TokenOptions(
            image_px=square(vision.image_size, "vision_config.image_size", path),
            text_tokens=text.max_position_embeddings,
        ),
        figures={"logit_scale": float(theirs.pop("logit_scale").exp())},
        weights=_weights(theirs, vision.num_hidden_layers, file),
        **_inputs(folder, text),
    )


def _weights(theirs: dict[str, Tensor], depth: int, file: Path) -> dict[str, Tensor]:
    """Theirs by our names. ValueError names one that is missing, or that has no place."""
    rest = {n: w.float() for n, w in theirs.items() if not n.endswith("position_ids")}
    found = from_transformers(rest)
    rest = {n: w for n, w in rest.items() if not n.startswith("text_model.")}

    def take(name: str) -> Tensor:
        if name not in rest:
            raise ValueError(f"{file} lacks {name}, which its config.json asks for")
        return rest.pop(name)

    at = "vision_model."
    found |= {
        "image.vit.patch_embed.proj.weight": take(at + "embeddings.patch_embedding.weight"),
        "image.vit.cls_token": take(at + "embeddings.class_embedding")[None, None],
        IMAGE_POSITIONS: take(at + "embeddings.position_embedding.weight"),
        "image_projection.weight": take("visual_projection.weight"),
        "text_projection.weight": take("text_projection.weight"),
    }
    for kind in ("weight", "bias"):
        found[f"image.vit.norm_pre.{kind}"] = take(f"{at}pre_layrnorm.{kind}")
        found[f"image.vit.norm.{kind}"] = take(f"{at}post_layernorm.{kind}")
        for place in range(depth):
            ours, block = f"image.vit.blocks.{place}", f"{at}encoder.layers.{place}"
            for timms, name in BLOCK_NAMES.values():
                found[f"{ours}.{timms}.{kind}"] = take(f"{block}.{name}.{kind}")
            parts = [take(f"{block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            found[f"{ours}.attn.qkv.{kind}"] = cat(parts)
    if rest:
        refuse(file, [f"weight {min(rest)}"])
    return found


def _inputs(folder: Path, text: Any) -> dict[str, Any]:
    """The source's own model, pixels and ids, and what of them our folder records."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    if not (folder / _PICTURES).is_file():
        raise FileNotFoundError(
            f"{folder} has no {_PICTURES}, which says mean, std and resize: put the model's there"
        )
    model: Any = CLIPModel.from_pretrained(folder).eval()
    pictures: Any = AutoImageProcessor.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if text.eos_token_id not in (_OLD_EOS, tokenizer.eos_token_id):
        refuse(folder, [f"text_config.eos_token_id={text.eos_token_id} with a tokenizer whose eos "
                        f"is {tokenizer.eos_token_id}"])  # fmt: skip

    def embed(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = model.get_image_features(pixels), model.get_text_features(ids)
        images, texts = (F.normalize(each.pooler_output, dim=-1) for each in found)
        return images, texts

    def pixels(images: list[Image.Image]) -> Tensor:
        return pictures(images, return_tensors="pt")["pixel_values"]

    def tokenize(texts: list[str]) -> Tensor:
        length = text.max_position_embeddings
        made = tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return made["input_ids"]

    ours = "shortest_edge" in dict(pictures.size) and int(pictures.resample) == _BICUBIC
    return {
        "tokenizer": fast_tokenizer(tokenizer, folder),
        "mean": tuple(pictures.image_mean),
        "std": tuple(pictures.image_std),
        "resize": OUR_RESIZE if ours else f"{dict(pictures.size)}, Pillow's {pictures.resample}",
        "prepare": pixels,
        "tokenize": tokenize,
        "embed": embed,
    }
