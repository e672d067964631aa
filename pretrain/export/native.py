"""An exported folder: plain files that need neither the run nor the corpus, and loading it."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.base.files import file_sha256, write_durably, write_tensors
from pretrain.batches.augment import MEAN_STD, prepare
from pretrain.batches.images import evaluation_pixels
from pretrain.batches.options import AugmentOptions, Normalisation
from pretrain.dataset.pictures import upright_rgb
from pretrain.dataset.reader import Dataset
from pretrain.losses.build import build_objective
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP, read_model_options
from pretrain.models.options import ModelOptions
from pretrain.models.starting import CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE
from pretrain.recipe.recipe import Recipe
from pretrain.tokens.context import context
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer
from pretrain.tokens.vocabulary import Vocabulary

# The training set's own file, of either kind. Not "tokenizer.model" nor "tokenizer.json":
# transformers would read that by rules of its own.
TOKENIZER_FILE = "text.tokenizer"
EXPORT_FORMAT = 3
_AGAIN = (
    "write it again with `python -m pretrain.export --run_dir RUN_DIR --out FOLDER`, or, where it "
    "was converted, `python -m pretrain.convert SOURCE FOLDER`"
)


_MODEL_HEAD = """# What this folder's model is, and the pixels it saw, to start a training from it:
#   --config RECIPE.yaml --config FOLDER/recipe.yaml --start.export FOLDER
"""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A loaded export: pictures and texts to unit vectors."""

    model: CLIP
    tokenizer: Tokenizer
    normalisation: Normalisation
    logit_scale: float
    logit_bias: float | None  # None after the softmax loss

    @property
    def device(self) -> torch.device:
        return self.model.device

    def pixels(self, images: list[Image.Image]) -> Tensor:
        """(B, 3, H, W) fp32 of PIL pictures of any mode: treated as training's, centre square,
        resized, normalised."""
        image_px = self.model.image.image_px
        squares = [evaluation_pixels(np.asarray(upright_rgb(image)), image_px) for image in images]
        pixels = torch.from_numpy(np.stack(squares)).to(self.device)
        return prepare(pixels, None, AugmentOptions(), self.normalisation, torch.float32)

    @torch.inference_mode()
    def encode_images(self, images: list[Image.Image]) -> Tensor:
        """(B, E) of PIL pictures of any mode."""
        return self.model.encode_image(self.pixels(images))

    def text_ids(self, texts: list[str]) -> Tensor:
        """(B, T) of texts, truncated to the model's context."""
        ids = context(
            [np.asarray(self.tokenizer.encode(text), np.int64) for text in texts],
            self.model.text.text_tokens,
            self.model.options.text.specials,
            self.model.text.vocabulary,
        )
        return torch.from_numpy(ids).to(self.device)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """(B, E) of texts, truncated to the model's context."""
        return self.model.encode_text(self.text_ids(texts))


def export_config(recipe: Recipe, stage: str, parameters: dict[str, Tensor]) -> dict[str, Any]:
    """What a finished stage's model is, and how its inputs are prepared, as plain data.

    parameters: the objective's, by name.
    """
    objective = build_objective(recipe.loss)
    objective.load_state_dict(parameters)
    dataset = Dataset(recipe.data.train, recipe.data.tier, looks=False)
    return native_config(
        recipe.model,
        vocabulary=dataset.vocabulary,
        tokens=recipe.stages[stage].tokens,
        normalisation=recipe.data.normalisation,
        figures=objective.figures(),
        tokenizer_sha256=dataset.manifest.tokenizer.sha256,
    )


def native_config(
    model: ModelOptions,
    *,
    vocabulary: Vocabulary,
    tokens: TokenOptions,
    normalisation: Normalisation,
    figures: dict[str, float],
    tokenizer_sha256: str,
) -> dict[str, Any]:
    """config.json of an exported folder. figures: logit_scale, logit_bias where there is one."""
    mean, std = MEAN_STD[normalisation]
    return {
        "format": EXPORT_FORMAT,
        "model": asdict(model),
        "vocabulary": asdict(vocabulary),
        "image_px": tokens.image_px,
        "text_tokens": tokens.text_tokens,
        "normalisation": normalisation,
        "preprocessing": {
            "orientation": "upright by EXIF",
            "background": [255, 255, 255],
            "crop": "centre square, the whole shorter side",
            "resize": "bicubic, antialiased, in uint8 (torch.nn.functional.interpolate)",
            "image_px": tokens.image_px,
            "scale": "1/255",
            "mean": list(mean),
            "std": list(std),
        },
        **figures,
        "tokenizer_sha256": tokenizer_sha256,
    }


def write_native(
    out: Path, config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Weights, tokenizer, the model in a recipe's words and, last, config: what `load` and a start
    read. A folder without config is no export, so an earlier one's goes first: old and new parts
    never pass for one model."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).unlink(missing_ok=True)
    write_tensors(out / WEIGHTS_FILE, weights, {"format": "pt"})
    write_durably(out / TOKENIZER_FILE, tokenizer.file.read_bytes())
    write_durably(
        out / MODEL_FILE,
        _MODEL_HEAD
        + yaml.safe_dump(
            {"data": {"normalisation": config["normalisation"]}, "model": config["model"]},
            sort_keys=False,
        ),
    )
    write_durably(out / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load(
    folder: Path | str, *, image_px: int | None = None, text_tokens: int | None = None
) -> ExportedModel:
    """An exported model on the CPU in fp32, at its own lengths or others.

    ValueError or FileNotFoundError, with the remedy, where the folder is none of ours, half
    written, of another format, or its parts disagree.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tokenizer = _read_tokenizer(folder, config)
    try:
        weights = load_file(str(folder / WEIGHTS_FILE))
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} is missing or half written ({error}): {_AGAIN}"
        ) from error
    if odd := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{folder / WEIGHTS_FILE}: {odd[0]} is not finite: the run diverged, or the "
            f"file is damaged; choose an earlier stage, or {_AGAIN}"
        )
    options, own = export_options(folder)
    try:
        model = build_model(
            options,
            tokens=TokenOptions(
                image_px=image_px or own.image_px,
                text_tokens=text_tokens or own.text_tokens,
            ),
            vocabulary=Vocabulary(**config["vocabulary"]),
            device=torch.device("cpu"),
            weights=weights,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it "
            f"({' '.join(str(error).split())[:200]}): {_AGAIN}"
        ) from error
    return ExportedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        normalisation=config["normalisation"],
        logit_scale=config["logit_scale"],
        logit_bias=config.get("logit_bias"),
    )


def export_options(folder: Path) -> tuple[ModelOptions, TokenOptions]:
    """Shape of an exported model, and the lengths that it was exported at."""
    config = _read_config(folder)
    tokens = TokenOptions(image_px=config["image_px"], text_tokens=config["text_tokens"])
    try:
        return read_model_options(config["model"]), tokens
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"model in {folder / CONFIG_FILE} cannot be read ({error}): {_AGAIN}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        begun = (folder / WEIGHTS_FILE).is_file()
        raise FileNotFoundError(
            f"no {CONFIG_FILE} in {folder}: {'a half-written' if begun else 'not an'} exported "
            f"model; {_AGAIN}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON ({error}): {_AGAIN}") from error
    if not isinstance(config, dict) or config.get("format") != EXPORT_FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(
            f"{folder} has export format {found}, this version of the package reads "
            f"{EXPORT_FORMAT}: {_AGAIN}, or use the version that wrote it"
        )
    for key, fits in _NEEDED.items():
        if not fits(config.get(key)):
            found = config.get(key, "nothing")
            raise ValueError(f"{path} has {str(found)[:80]!r} as {key}: {_AGAIN}")
    return config


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 14


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


_NEEDED: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, dict),
    "vocabulary": lambda value: isinstance(value, dict),
    "tokenizer_sha256": lambda value: isinstance(value, str),
    "normalisation": lambda value: value in get_args(Normalisation),
    "image_px": _is_size,
    "text_tokens": _is_size,
    "logit_scale": _is_scale,
}


def _read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path = folder / TOKENIZER_FILE
    found = file_sha256(path) if path.is_file() else None
    if found != config["tokenizer_sha256"]:
        raise ValueError(
            f"{path} is {'missing' if found is None else 'not the tokenizer of the exported model'}"
            f" (sha256 {found and found[:12]}, config.json asks for "
            f"{config['tokenizer_sha256'][:12]}): put its own file back, or {_AGAIN}"
        )
    return open_tokenizer(path)
