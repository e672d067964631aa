"""An exported folder: plain files that need neither the run nor the corpus, and loading it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pretrain.data.augment import MEAN_STD, AugmentOptions, Normalisation, prepare
from pretrain.data.dataset import Dataset
from pretrain.data.images import centre_box, resize
from pretrain.files import write_durably, write_tensors
from pretrain.losses.build import build_objective
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP, ModelOptions
from pretrain.models.image_tower import ImageTowerOptions
from pretrain.models.starting import CONFIG_FILE, WEIGHTS_FILE
from pretrain.models.text_tower import TextTowerOptions
from pretrain.pictures import upright_rgb
from pretrain.recipe import Recipe
from pretrain.tokens.context import context
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer

# Not "tokenizer.model": transformers would read that by rules of its own, and give other ids.
TOKENIZER_FILE = "sentencepiece.model"
EXPORT_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A loaded export: pictures and texts to unit vectors."""

    model: CLIP
    tokenizer: Tokenizer
    normalisation: Normalisation
    logit_scale: float
    logit_bias: float | None  # None after the softmax loss

    def pixels(self, images: list[Image.Image]) -> Tensor:
        """(B, 3, H, W) fp32 of PIL pictures of any mode: treated as training's, centre square,
        resized, normalised."""
        image_px = self.model.image.image_px
        pixels = torch.from_numpy(np.stack([_pixels(image, image_px) for image in images]))
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
        )
        return torch.from_numpy(ids)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """(B, E) of texts, truncated to the model's context."""
        return self.model.encode_text(self.text_ids(texts))


def _pixels(image: Image.Image, image_px: int) -> np.ndarray:
    picture = np.asarray(upright_rgb(image))
    return resize(picture, centre_box(*picture.shape[:2]), image_px)


def export_config(recipe: Recipe, stage: str, parameters: dict[str, Tensor]) -> dict[str, Any]:
    """What a finished stage's model is, and how its inputs are prepared, as plain data.

    parameters: the objective's, by name.
    """
    objective = build_objective(recipe.loss)
    objective.load_state_dict(parameters)
    dataset = Dataset(recipe.data.train, recipe.data.tier)
    tokens = recipe.stages[stage].tokens
    mean, std = MEAN_STD[recipe.data.normalisation]
    return {
        "format": EXPORT_FORMAT,
        "model": asdict(recipe.model),
        "vocab_size": dataset.manifest.tokenizer.vocab_size,
        "image_px": tokens.image_px,
        "text_tokens": tokens.text_tokens,
        "normalisation": recipe.data.normalisation,
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
        **objective.figures(),
        "tokenizer_sha256": dataset.manifest.tokenizer.sha256,
    }


def write_native(
    out: Path, config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Weights, tokenizer and, last, config: what `load` reads."""
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / WEIGHTS_FILE, weights, {"format": "pt"})
    write_durably(out / TOKENIZER_FILE, tokenizer.file.read_bytes())
    write_durably(out / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load(folder: Path | str) -> ExportedModel:
    """An exported model on the CPU in fp32. ValueError where the folder's parts disagree."""
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"no {CONFIG_FILE} in {folder}: not an exported model; write one with "
            "`python -m pretrain.export --run_dir RUN_DIR --out FOLDER`"
        )
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if config.get("format") != EXPORT_FORMAT:
        raise ValueError(
            f"{folder} has export format {config.get('format')}, this reads {EXPORT_FORMAT}: "
            "export the run again"
        )
    tokenizer = Tokenizer(folder / TOKENIZER_FILE)
    if tokenizer.sha256 != config["tokenizer_sha256"]:
        raise ValueError(f"{folder / TOKENIZER_FILE} is not the tokenizer of the exported model")
    raw = config["model"]
    model = build_model(
        ModelOptions(
            image=ImageTowerOptions(**raw["image"]),
            text=TextTowerOptions(**raw["text"]),
            embed_dim=raw["embed_dim"],
        ),
        tokens=TokenOptions(image_px=config["image_px"], text_tokens=config["text_tokens"]),
        vocab_size=config["vocab_size"],
        device=torch.device("cpu"),
        weights=load_file(str(folder / WEIGHTS_FILE)),
    )
    return ExportedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        normalisation=config["normalisation"],
        logit_scale=config["logit_scale"],
        logit_bias=config.get("logit_bias"),
    )
