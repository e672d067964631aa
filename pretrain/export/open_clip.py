"""A CLIP as one of open_clip's own models, where that is exact; a refusal by option where not."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pretrain.base.files import write_tensors
from pretrain.export.judge import Embeddings, embeddings
from pretrain.export.native import ExportedModel
from pretrain.export.tokenizer import tokenizer_files
from pretrain.models.clip import CLIP
from pretrain.models.in_open_clip import TEXT_POOL, inexpressible
from pretrain.models.options import ModelOptions
from pretrain.models.starting import OPEN_CLIP_CONFIG

CONFIG_FILE, WEIGHTS_FILE = OPEN_CLIP_CONFIG, "open_clip_model.safetensors"
BLOCK_NAMES = {  # open_clip's name -> timm's, transformers'
    "ln_1": ("norm1", "layer_norm1"),
    "ln_2": ("norm2", "layer_norm2"),
    "attn.out_proj": ("attn.proj", "self_attn.out_proj"),
    "mlp.c_fc": ("mlp.fc1", "mlp.fc1"),
    "mlp.c_proj": ("mlp.fc2", "mlp.fc2"),
}
_WEIGHT_AND_BIAS = ("weight", "bias")


def weight_names(options: ModelOptions) -> dict[str, tuple[str, ...]]:
    """{open_clip's name: ours, one behind the other} of norms and blocks."""
    norm = "image.vit.norm" if options.image.pool == "cls" else "image.vit.fc_norm"
    norms = {"visual.ln_post": norm, "ln_final": "text.encoder.final_layer_norm"}
    if options.image.pre_norm:
        norms["visual.ln_pre"] = "image.vit.norm_pre"
    found: dict[str, tuple[str, ...]] = {
        f"{theirs}.{kind}": (f"{ours}.{kind}",)
        for theirs, ours in norms.items()
        for kind in _WEIGHT_AND_BIAS
    }
    for side, depth in enumerate((options.image.depth, options.text.depth)):
        for place in range(depth):
            theirs = ("visual.transformer", "transformer")[side] + f".resblocks.{place}"
            ours = ("image.vit.blocks", "text.encoder.encoder.layers")[side] + f".{place}"
            parts = ("attn.qkv",) if side == 0 else tuple(f"self_attn.{p}_proj" for p in "qkv")
            for kind in _WEIGHT_AND_BIAS:
                for name, names in BLOCK_NAMES.items():
                    found[f"{theirs}.{name}.{kind}"] = (f"{ours}.{names[side]}.{kind}",)
                found[f"{theirs}.attn.in_proj_{kind}"] = tuple(f"{ours}.{p}.{kind}" for p in parts)
    return found


def check_expressible(model: CLIP) -> None:
    """ValueError names the option that open_clip has no counterpart of."""
    if found := inexpressible(model.options):
        raise ValueError(
            f"open_clip has no exact counterpart of {', '.join(found)}: export with "
            "--format transformers, or train with another value"
        )


def open_clip_config(model: CLIP, *, logit_bias: float | None) -> dict[str, Any]:
    """The arguments of open_clip's CLIP that make it the same function as `model`."""
    check_expressible(model)
    image, text = model.options.image, model.options.text

    def common(options: Any) -> dict[str, Any]:
        tanh = {"approximate": "tanh"}
        return {
            "width": options.width,
            "layers": options.depth,
            "mlp_ratio": options.mlp_ratio,
            "act_kwargs": tanh if options.gelu == "tanh" else None,
            "norm_kwargs": {"eps": options.norm_eps},
        }

    config: dict[str, Any] = {
        "embed_dim": model.options.embed_dim,
        "quick_gelu": image.gelu == "quick",
        "vision_cfg": {
            **common(image),
            "head_width": image.width // image.heads,
            "patch_size": image.patch_px,
            "image_size": model.image.image_px,
            "no_ln_pre": not image.pre_norm,
            "pool_type": "tok" if image.pool == "cls" else "avg",
            "final_ln_after_pool": image.pool != "cls",
        },
        "text_cfg": {
            **common(text),
            "heads": text.heads,
            "context_length": model.text.text_tokens,
            "vocab_size": model.text.vocabulary.size,
            "hf_tokenizer_name": "local-dir",  # any name: the folder's own tokenizer is read
            "pool_type": TEXT_POOL[text.pool],
            "no_causal_mask": not text.causal,
            "pad_id": model.text.vocabulary.pad_id,
            "eos_id": model.text.vocabulary.eos_id,
        },
    }
    return config if logit_bias is None else {**config, "init_logit_bias": logit_bias}


@torch.no_grad()
def open_clip_weights(
    model: CLIP, *, logit_scale: float, logit_bias: float | None
) -> dict[str, Tensor]:
    """The model's weights by open_clip's names. ValueError names a weight that has no place."""
    own = {name.replace(".text_model.", "."): w for name, w in model.state_dict().items()}

    def take(name: str) -> Tensor:
        return own.pop(name).float()

    width = model.options.image.width
    positions = model.image.positions.float()
    own.pop("image.positions", None)
    if "image.vit.patch_embed.proj.bias" in own:
        # A constant in every patch, which open_clip's convolution has no place for.
        bias = take("image.vit.patch_embed.proj.bias")
        first = int(model.options.image.cls_position)
        positions = torch.cat([positions[:first], positions[first:] + bias])
    if not model.options.image.cls_position:
        positions = torch.cat([torch.zeros(1, width), positions])
    out = {
        "logit_scale": torch.tensor(math.log(logit_scale)),
        "visual.conv1.weight": take("image.vit.patch_embed.proj.weight"),
        "visual.class_embedding": take("image.vit.cls_token")[0, 0],
        "visual.positional_embedding": positions,
        "visual.proj": take("image_projection.weight").T,
        "token_embedding.weight": take("text.encoder.embeddings.token_embedding.weight"),
        "positional_embedding": take("text.encoder.embeddings.position_embedding.weight"),
        "text_projection": take("text_projection.weight").T,
    }
    if logit_bias is not None:
        out["logit_bias"] = torch.tensor(logit_bias)
    for theirs, ours in weight_names(model.options).items():
        out[theirs] = torch.cat([take(name) for name in ours])
    if own:
        raise ValueError(
            f"open_clip has no place for the weight {min(own)}: export with --format transformers"
        )
    return out


def open_clip_text_files(
    own: ExportedModel, config: dict[str, Any], captions: list[str]
) -> dict[str, str]:
    """{file name: content} of config and tokenizer. ValueError where the model or an id differs."""
    shape = open_clip_config(own.model, logit_bias=config.get("logit_bias"))
    preprocessing = config["preprocessing"]
    prepare = {
        "size": config["image_px"],
        "mode": "RGB",
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    content = {"model_cfg": shape, "preprocess_cfg": prepare}
    specials, tokens = config["model"]["text"]["specials"], config["text_tokens"]
    return {
        CONFIG_FILE: json.dumps(content, indent=2) + "\n",
        **tokenizer_files(own.tokenizer, specials, tokens, captions),
    }


def write_open_clip(out: Path, own: ExportedModel, config: dict[str, Any]) -> None:
    weights = open_clip_weights(
        own.model, logit_scale=config["logit_scale"], logit_bias=config.get("logit_bias")
    )
    write_tensors(out / WEIGHTS_FILE, weights)


@torch.inference_mode()
def embed_with_open_clip(
    folder: Path, own: ExportedModel, pictures: list[Image.Image], texts: list[str]
) -> tuple[Embeddings, Embeddings]:
    """What open_clip gives: on our pixels and ids; by its own preparation of pictures and texts,
    which has no option for ours."""
    import open_clip

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def embed(pixels: Tensor, ids: Tensor) -> Embeddings:
        return embeddings(
            model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
        )

    prepared = torch.stack([prepare(picture) for picture in pictures])
    return embed(own.pixels(pictures), own.text_ids(texts)), embed(prepared, tokenize(texts))
