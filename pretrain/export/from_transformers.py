"""A folder of transformers' CLIPModel or SiglipModel, by our options and names."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pretrain.export.foreign import read_config
from pretrain.export.siglip_tokenizer import siglip_tokenizer
from pretrain.export.source import (
    OUR_RESIZE,
    ForeignModel,
    check_weights,
    fast_tokenizer,
    refuse,
    square,
    take_from,
)
from pretrain.export.transformers_weights import read_weights, weights_by_our_names
from pretrain.models.options import Gelu, ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.starting import CONFIG_FILE
from pretrain.tokens.options import TokenOptions

_PICTURES = "preprocessor_config.json"
_GELU: dict[str, Gelu] = {
    "gelu": "exact", "quick_gelu": "quick", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh",
}  # fmt: skip
_OLD_EOS = 2  # transformers pools at the highest id where the config says so
_BICUBIC = 3  # Pillow's number


def read_transformers(folder: Path) -> ForeignModel:
    """ValueError names what our towers cannot express, or what the folder lacks."""
    path = folder / CONFIG_FILE
    kind = read_config(path).get("model_type")
    if kind not in ("clip", "siglip"):
        refuse(path, [f"model_type={kind!r}"])
    read_config(path, "text_config", "vision_config")
    theirs, file = read_weights(folder)
    read = _read_siglip if kind == "siglip" else _read_clip
    return read(folder, theirs, file)


def _common(side: Any, section: str, path: Path) -> dict[str, Any]:
    """Options that both towers have, of one side's config."""
    if side.hidden_act not in _GELU:
        refuse(path, [f"{section}.hidden_act={side.hidden_act!r}"])
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


def _image_common(vision: Any, path: Path) -> dict[str, Any]:
    if vision.num_channels != 3:
        refuse(path, [f"vision_config.num_channels={vision.num_channels}"])
    return {
        **_common(vision, "vision_config", path),
        "patch_px": square(vision.patch_size, "vision_config.patch_size", path),
        "positions": "learned",
    }


def _tokens(vision: Any, text: Any, path: Path) -> TokenOptions:
    return TokenOptions(
        image_px=square(vision.image_size, "vision_config.image_size", path),
        text_tokens=text.max_position_embeddings,
    )


def _read_clip(folder: Path, theirs: dict[str, Tensor], file: Path) -> ForeignModel:
    from transformers import CLIPConfig, CLIPModel

    path = folder / CONFIG_FILE
    config: Any = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    options = ModelOptions(
        image=ImageTowerOptions(
            **_image_common(vision, path),
            pool="cls",
            cls_position=True,
            pre_norm=True,
            patch_bias=False,
        ),
        text=TextTowerOptions(
            **_common(text, "text_config", path),
            causal=True,
            pool="highest_id" if text.eos_token_id == _OLD_EOS else "eos",
            specials="bos_eos",
        ),
        embed_dim=config.projection_dim,
    )
    take = take_from(theirs, file)
    tokenizer = _tokenizer(folder)
    if text.eos_token_id not in (_OLD_EOS, tokenizer.eos_token_id):
        refuse(folder, [f"text_config.eos_token_id={text.eos_token_id} with a tokenizer whose eos "
                        f"is {tokenizer.eos_token_id}"])  # fmt: skip
    tokens, scale = _tokens(vision, text, path), float(take("logit_scale").exp())
    weights = weights_by_our_names(theirs, vision.num_hidden_layers, file, siglip=False)
    check_weights(weights, options, tokens, file)
    return ForeignModel(
        options=options,
        tokens=tokens,
        figures={"logit_scale": scale},
        weights=weights,
        tokenizer=fast_tokenizer(tokenizer, folder),
        **_inputs(folder, CLIPModel.from_pretrained(folder, dtype=torch.float32), tokenizer),
    )


def _read_siglip(folder: Path, theirs: dict[str, Tensor], file: Path) -> ForeignModel:
    from transformers import SiglipConfig, SiglipModel

    path = folder / CONFIG_FILE
    config: Any = SiglipConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    if not vision.vision_use_head:
        refuse(path, ["vision_config.vision_use_head=False"])
    if text.projection_size != vision.hidden_size:
        refuse(path, [f"text_config.projection_size={text.projection_size} with "
                      f"vision_config.hidden_size={vision.hidden_size}"])  # fmt: skip
    options = ModelOptions(
        image=ImageTowerOptions(
            **_image_common(vision, path),
            pool="attention",
            cls_token=False,
            pre_norm=False,
            patch_bias=True,
        ),
        text=TextTowerOptions(
            **_common(text, "text_config", path), causal=False, pool="last", specials="eos"
        ),
        embed_dim=vision.hidden_size,
        image_projection=False,
        text_projection_bias=True,
    )
    take = take_from(theirs, file)
    tokenizer = _tokenizer(folder)
    figures = {
        "logit_scale": float(take("logit_scale").exp()),
        "logit_bias": float(take("logit_bias")),
    }
    tokens = _tokens(vision, text, path)
    weights = weights_by_our_names(theirs, vision.num_hidden_layers, file, siglip=True)
    check_weights(weights, options, tokens, file)
    return ForeignModel(
        options=options,
        tokens=tokens,
        figures=figures,
        weights=weights,
        tokenizer=siglip_tokenizer(tokenizer, folder),
        **_inputs(folder, SiglipModel.from_pretrained(folder, dtype=torch.float32), tokenizer),
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _inputs(folder: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The source's own embeddings, pixels and ids, and what of them our folder records."""
    from transformers import AutoImageProcessor

    if not (folder / _PICTURES).is_file():
        raise FileNotFoundError(
            f"{folder} has no {_PICTURES}, which says mean, std and resize: put the model's there"
        )
    pictures: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    model.eval()

    def embed(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = model.get_image_features(pixels), model.get_text_features(ids)
        images, texts = (F.normalize(each.pooler_output, dim=-1) for each in found)
        return images, texts

    def pixels(images: list[Image.Image]) -> Tensor:
        return pictures(images, return_tensors="pt")["pixel_values"]

    def tokenize(texts: list[str]) -> Tensor:
        length = model.config.text_config.max_position_embeddings
        made = tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return made["input_ids"]

    ours = "shortest_edge" in dict(pictures.size) and int(pictures.resample) == _BICUBIC
    return {
        "mean": tuple(pictures.image_mean),
        "std": tuple(pictures.image_std),
        "resize": OUR_RESIZE if ours else f"{dict(pictures.size)}, Pillow's {pictures.resample}",
        "prepare": pixels,
        "tokenize": tokenize,
        "embed": embed,
    }
