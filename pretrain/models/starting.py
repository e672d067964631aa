"""Starting weights: a whole model from an export, a tower from timm's or transformers' files."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.models.clip import CLIP, IMAGE_POSITIONS, resize_weights
from pretrain.models.options import StartOptions

# An export's.
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
# Its model and pixels in a recipe's words, to stand behind --config.
MODEL_FILE = "recipe.yaml"
OPEN_CLIP_CONFIG = "open_clip_config.json"
# What a tower computes by without a weight that tells of it.
_UNWEIGHTED = ("heads", "gelu", "norm_eps", "causal", "padding_mask", "pool", "specials")
# What brings a missing, foreign or misshapen tensor about, by a part of its name in our model.
_DECIDED_BY = {
    "image.vit.cls_token": "model.image.cls_token",
    "image.vit.norm_pre": "model.image.pre_norm",
    "image.vit.norm.": "model.image.pool",
    "image.vit.fc_norm": "model.image.pool",
    "image.vit.attn_pool": "model.image.pool",
    "image.vit.patch_embed.proj.bias": "model.image.patch_bias",
    "image.vit.patch_embed": "model.image.width and patch_px",
    "image.vit.blocks": "model.image.width, depth and mlp_ratio",
    "image_projection": "model.image_projection and model.embed_dim",
    "text_projection.bias": "model.text_projection_bias",
    "image": "model.image",
    "text.encoder.embeddings.token_embedding": "data.train (its tokenizer) and model.text.width",
    "text.encoder.encoder": "model.text.width, depth and mlp_ratio",
    "text": "model.text",
}


def find_start(options: StartOptions) -> None:
    """FileNotFoundError where this machine does not have what the first stage starts from."""
    for option in ("image", "text"):
        path: Path | None = getattr(options, option)
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"start.{option}={path}: there is no such file")
    if options.export is not None:
        _export_config(options.export)


def check_start(
    options: StartOptions, model: CLIP, tokenizer_sha256: str, normalisation: str
) -> None:
    """ValueError for files that the first stage's model (without memory, on the meta device)
    cannot start from, or an export that saw other pixels or computes otherwise."""
    if options.export is None:
        read_start(options, model)
        return
    config, source = _export_config(options.export), f"start.export={options.export}"
    if config["tokenizer_sha256"] != tokenizer_sha256:
        raise ValueError(
            f"{source} was trained with another tokenizer than data.train's: build the dataset "
            f"with --tokenizer {options.export}/text.tokenizer, and train "
            f"{_by_model_file(options.export)}"
        )
    read_start(options, model)
    asked = [("data.normalisation", config.get("normalisation"), normalisation)]
    for side in ("image", "text"):
        own, theirs = asdict(getattr(model.options, side)), config["model"][side]
        asked += [
            (f"model.{side}.{name}", theirs[name], own[name])
            for name in _UNWEIGHTED
            if name in own and name in theirs
        ]
    for name, theirs, ours in asked:
        if theirs != ours and not options.accept_differences:
            raise ValueError(
                f"{source} was trained with {name}={theirs}, this recipe has {ours}: train "
                f"{_by_model_file(options.export)}, or go on with --start.accept_differences true"
            )


def load_start(options: StartOptions, model: CLIP) -> dict[str, float]:
    """Give a new model its starting weights, with positions resized; returns the loss's figures
    (of an export), by name."""
    found, figures = read_start(options, model)
    model.load_state_dict(resize_weights({**model.state_dict(), **found}, model))
    return figures


def read_start(options: StartOptions, model: CLIP) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(weights by our names, the loss's figures of an export) for a model of this shape.

    ValueError names the first tensor that does not fit, and the option that decides it.
    """
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    figures: dict[str, float] = {}
    if options.export is not None:
        path = options.export / WEIGHTS_FILE
        config = _export_config(options.export)
        try:
            theirs = read_tensors(path, "start.export")
            found = _fitting(own, theirs, f"start.export={path}", "")
        except ValueError as error:
            raise ValueError(f"{error}; train {_by_model_file(options.export)}") from error
        figures = {n: config[n] for n in ("logit_scale", "logit_bias") if n in config}
    if options.image is not None:
        theirs = from_timm(read_tensors(options.image, "start.image"), model)
        found |= _fitting(own, theirs, f"start.image={options.image}", "image.")
    if options.text is not None:
        theirs = from_transformers(read_tensors(options.text, "start.text"))
        found |= _fitting(own, theirs, f"start.text={options.text}", "text.")
    return found, figures


def from_timm(weights: dict[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """A timm VisionTransformer's weights by our names, positions as our table's rows."""
    found = {
        f"image.vit.{name}": value
        for name, value in weights.items()
        if name != "pos_embed" and not name.startswith("head.")
    }
    table = weights.get("pos_embed")
    if table is None:
        return found
    if IMAGE_POSITIONS not in model.state_dict():
        raise ValueError(
            "start.image: pos_embed is a learned table, and model.image.positions="
            f"{model.options.image.positions} has none: set it to learned"
        )
    table = table[0].float()
    side = int(len(table) ** 0.5)
    has_cls = side**2 != len(table)
    if has_cls and int((len(table) - 1) ** 0.5) ** 2 != len(table) - 1:
        raise ValueError(
            f"start.image: pos_embed has {len(table)} rows, neither a square grid nor one and "
            "CLS: choose a model without register tokens, trained on square pictures"
        )
    wants_cls = model.options.image.cls_position
    if has_cls and not wants_cls and "image.vit.cls_token" in found:
        # The row of CLS is a constant of its token.
        found["image.vit.cls_token"] = found["image.vit.cls_token"] + table[0]
        table = table[1:]
    elif wants_cls and not has_cls:
        table = torch.cat([torch.zeros_like(table[:1]), table])
    return {**found, IMAGE_POSITIONS: table}


def from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text tower's weights by our names, also out of a whole CLIP's; its projection left out."""
    inside = "text_model."
    if any(name.startswith(inside) for name in weights):
        weights = {n.removeprefix(inside): w for n, w in weights.items() if n.startswith(inside)}
    return {
        f"text.encoder.{name}": value
        for name, value in weights.items()
        if not name.startswith(("head.", "text_projection.")) and name != "embeddings.position_ids"
    }


def read_tensors(path: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch.save of tensors alone. Runs no code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{option}={path} holds more than tensors, and would run code to be read: save its "
            "state_dict alone, as safetensors"
        ) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{option}={path} cannot be read ({error}): check the file") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(torch.is_tensor(w) for w in content.values()):
        raise ValueError(f"{option}={path} is not a state_dict: save the model's state_dict alone")
    return content


def _fitting(
    own: dict[str, Tensor], theirs: dict[str, Tensor], source: str, prefix: str
) -> dict[str, Tensor]:
    """Their tensors, which are all of ours that begin with `prefix`, in shapes that fit; the
    tables of positions may have other lengths."""
    wanted = {name: value for name, value in own.items() if name.startswith(prefix)}
    for name in wanted:
        if name not in theirs:
            raise ValueError(f"{source} lacks {name}: check {_say_what_decided(name)}")
    for name, value in theirs.items():
        if name not in wanted:
            raise ValueError(
                f"{source} has {name}, this model has not: check {_say_what_decided(name)}"
            )
        resizes = name == IMAGE_POSITIONS or name.endswith("position_embedding.weight")
        skipped = 1 if resizes else 0
        if value.shape[skipped:] != wanted[name].shape[skipped:]:
            raise ValueError(
                f"{source}: {name} is {tuple(value.shape)}, this model's "
                f"{tuple(wanted[name].shape)}: check {_say_what_decided(name)}"
            )
    return theirs


def _say_what_decided(name: str) -> str:
    return next((what for part, what in _DECIDED_BY.items() if name.startswith(part)), "model")


def _by_model_file(folder: Path) -> str:
    return f"by --config {folder / MODEL_FILE} behind the recipe's, its model and pixels"


def _export_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    config: dict[str, Any] = {}
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
    elif not folder.is_file() and not (folder / OPEN_CLIP_CONFIG).is_file():
        raise FileNotFoundError(
            f"start.export={folder} has no {CONFIG_FILE}: give a folder that `python -m "
            "pretrain.export` or `pretrain.convert` wrote"
        )
    if {"model", "tokenizer_sha256"} - config.keys():
        name = " --open-clip-name NAME" if folder.is_file() else ""
        raise ValueError(
            f"start.export={folder} is not an export of this package: convert it first: python -m "
            f"pretrain.convert {folder} OUT{name}"
        )
    return config
