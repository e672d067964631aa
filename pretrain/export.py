"""Export: a trained CLIP as one folder of plain files, and loading it back.

python -m pretrain.export --run_dir runs/demo --out runs/demo/export
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pretrain.data.augment import AugmentOptions, Normalisation, prepare
from pretrain.data.dataset import Dataset
from pretrain.data.images import centre_box, resize
from pretrain.faults import one_line_faults
from pretrain.files import write_durably, write_tensors
from pretrain.losses.build import build_objective
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP, ModelOptions
from pretrain.models.image_tower import ImageTowerOptions
from pretrain.models.text_tower import TextTowerOptions
from pretrain.pictures import upright_rgb
from pretrain.recipe import Recipe, read_recipe
from pretrain.run.weights import read_stage_weights
from pretrain.tokens.context import context
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer

WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.model"
EXPORT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A loaded export: pictures and texts to unit vectors."""

    model: CLIP
    tokenizer: Tokenizer
    normalisation: Normalisation
    logit_scale: float
    logit_bias: float | None  # None after the softmax loss

    @torch.inference_mode()
    def encode_images(self, images: list[Image.Image]) -> Tensor:
        """(B, E) of PIL pictures of any mode: treated as training's, centre square, resized."""
        image_px = self.model.image.image_px
        pixels = np.stack([_pixels(image, image_px) for image in images])
        return self.model.encode_image(
            prepare(
                torch.from_numpy(pixels), None, AugmentOptions(), self.normalisation, torch.float32
            )
        )

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """(B, E) of texts, truncated to the model's context."""
        ids = context(
            [np.asarray(self.tokenizer.encode(text), np.int64) for text in texts],
            self.model.text.text_tokens,
            self.model.options.text.specials,
        )
        return self.model.encode_text(torch.from_numpy(ids))


def _pixels(image: Image.Image, image_px: int) -> np.ndarray:
    picture = np.asarray(upright_rgb(image))
    return resize(picture, centre_box(*picture.shape[:2]), image_px)


def export(recipe: Recipe, stage: str, out: Path) -> ExportedModel:
    """Write weights, config and tokenizer of a finished stage into `out`; returns it loaded."""
    weights, parameters = read_stage_weights(recipe.run_dir, stage)
    objective = build_objective(recipe.loss)
    objective.load_state_dict(parameters)
    dataset = Dataset(recipe.data.train, recipe.data.tier)
    tokens = recipe.stages[stage].tokens
    config: dict[str, Any] = {
        "format": EXPORT_FORMAT,
        "model": asdict(recipe.model),
        "vocab_size": dataset.manifest.tokenizer.vocab_size,
        "image_px": tokens.image_px,
        "text_tokens": tokens.text_tokens,
        "normalisation": recipe.data.normalisation,
        **objective.figures(),
        "tokenizer_sha256": dataset.manifest.tokenizer.sha256,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / WEIGHTS_FILE, weights)
    write_durably(out / TOKENIZER_FILE, dataset.tokenizer().file.read_bytes())
    write_durably(out / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    return load(out)


def load(folder: Path | str) -> ExportedModel:
    """An exported model on the CPU in fp32. ValueError where the folder's parts disagree."""
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"no {CONFIG_FILE} in {folder}: not an exported model; write one with "
            "`python -m pretrain.export --run_dir RUN_DIR --out FOLDER`"
        )
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if config["format"] != EXPORT_FORMAT:
        raise ValueError(
            f"{folder} has export format {config['format']}, this reads {EXPORT_FORMAT}"
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


@torch.inference_mode()
def largest_difference(recipe: Recipe, stage: str, exported: ExportedModel) -> float:
    """Largest difference of any embedding value between the run's own weights and the export."""
    weights, _ = read_stage_weights(recipe.run_dir, stage)
    own = build_model(
        recipe.model,
        tokens=recipe.stages[stage].tokens,
        vocab_size=exported.model.vocab_size,
        device=torch.device("cpu"),
        weights=weights,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    side = own.image.image_px
    images = torch.randn(16, 3, side, side, generator=generator)
    shape = (16, own.text.text_tokens)
    texts = torch.randint(4, own.vocab_size, shape, generator=generator)
    pairs = zip(own(images, texts), exported.model(images, texts), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def main(run_dir: Path, out: Path | None = None, stage: str | None = None) -> None:
    """Export a trained model: safetensors, config and tokenizer.

    Args:
        run_dir: Run folder of a training run.
        out: Folder to write; by default RUN_DIR/export.
        stage: Stage whose weights to export; by default the recipe's last.
    """
    with one_line_faults():
        recipe = read_recipe(run_dir)
        stage = stage or list(recipe.stages)[-1]
        folder = out or run_dir / "export"
        exported = export(recipe, stage, folder)
    difference = largest_difference(recipe, stage, exported)
    print(f"exported stage {stage} to {folder}; largest difference after loading {difference:.1e}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
