"""Exports of small models with random weights: what a test needs where training plays no part."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.export.native import EXPORT_FORMAT, write_native
from pretrain.models.build import build_model
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.run.stage_weights import read_stage_weights
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import open_tokenizer

OPTIONS = ModelOptions(
    image=ImageTowerOptions(width=32, depth=2, heads=2, patch_px=8),
    text=TextTowerOptions(width=32, depth=2, heads=2, positions_resize="extend"),
    embed_dim=32,
)


def write_untrained(out: Path, dataset: Path, *, image_px: int = 32, text_tokens: int = 12) -> Path:
    """A native export with the tokenizer of a dataset directory."""
    manifest = read_manifest(dataset)
    recorded = manifest.tokenizer
    vocabulary = Dataset(dataset, next(iter(manifest.tiers))).vocabulary
    torch.manual_seed(0)
    model = build_model(
        OPTIONS,
        tokens=TokenOptions(image_px=image_px, text_tokens=text_tokens),
        vocabulary=vocabulary,
        device=torch.device("cpu"),
    )
    config = {
        "format": EXPORT_FORMAT,
        "model": asdict(OPTIONS),
        "vocabulary": asdict(vocabulary),
        "image_px": image_px,
        "text_tokens": text_tokens,
        "normalisation": "imagenet",
        "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "logit_scale": 14.3,
        "tokenizer_sha256": recorded.sha256,
    }
    tokenizer = open_tokenizer(dataset / recorded.file)
    write_native(out, config, model.state_dict(), tokenizer)
    return out


@torch.no_grad()
def stir(model: torch.nn.Module) -> None:
    """Random norms and biases too, which start at one and zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


def starting_from(export: Path) -> list[str]:
    """Options of a run that starts from a converted model and does not move it."""
    still = [word for stage in ("reduced", "full")
             for word in (f"--stages.{stage}.base_learning_rate", "1e-30")]  # fmt: skip
    return ["--config", str(export / "recipe.yaml"), *still, "--start.export", str(export)]


def check_start(run: Path, export: Path) -> dict[str, torch.Tensor]:
    """A run that `starting_from` began has the export's weights, and its logit scale; returns what
    its objective has."""
    trained, objective = read_stage_weights(run, "reduced")
    before = load_file(export / "model.safetensors")
    assert trained.keys() == before.keys()
    changed = [name for name in before if not torch.equal(trained[name], before[name])]
    assert all("position" in name for name in changed), changed  # those alone are resized
    scale = json.loads((export / "config.json").read_text())["logit_scale"]
    assert float(objective["log_scale"].exp()) == pytest.approx(scale, rel=1e-5)
    return objective
