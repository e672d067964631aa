"""What is evaluated: an export, a finished stage of a run, or the weights of a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.base.run_files import RECIPE_FILE
from pretrain.batches.options import Normalisation
from pretrain.dataset.reader import Dataset
from pretrain.engine.options import WeightsKind
from pretrain.evaluation.options import EvaluationOptions
from pretrain.export.native import CONFIG_FILE, WEIGHTS_FILE, export_options, load
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP
from pretrain.models.options import ModelOptions
from pretrain.models.starting import OPEN_CLIP_CONFIG
from pretrain.recipe.parsing import read_recipe
from pretrain.recipe.recipe import Recipe
from pretrain.run.stage_weights import read_finished_weights, weights_name
from pretrain.tokens.context import special_count
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """Where evaluated models come from: at any lengths, on any device, and how inputs are made."""

    build: Callable[[TokenOptions, torch.device], CLIP]
    model: ModelOptions
    own: TokenOptions
    tokenizer: Tokenizer
    normalisation: Normalisation
    evaluation: EvaluationOptions
    stage: str | None = None
    """Of a run."""


def find_model(folder: Path, stage: str | None, kind: WeightsKind = "plain") -> EvaluatedModel:
    """An export, or a finished stage of a run, the last one unless named."""
    if (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).is_file():
        if kind != "plain":
            raise ValueError(f"--weights {kind}: {folder} is an export, of one kind of weights")
        return _open_export(folder, stage)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        raise ValueError(
            f"{folder} is an open_clip folder: give the run or a native export, or convert it: "
            f"python -m pretrain.convert {folder} OUT"
        )
    if not (folder / RECIPE_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has neither {RECIPE_FILE} nor {CONFIG_FILE}: give a run folder or an "
            "exported model"
        )
    recipe = read_recipe(folder)
    stage = stage or list(recipe.stages)[-1]
    name = weights_name(recipe, stage, kind)
    return of_stage(recipe, stage, read_finished_weights(folder, name)[0])


def of_stage(recipe: Recipe, stage: str, weights: dict[str, Tensor]) -> EvaluatedModel:
    """Whole fp32 weights from some step of a stage, with the training set's tokenizer."""
    dataset = Dataset(recipe.data.train, recipe.data.tier, looks=False)

    def build(tokens: TokenOptions, device: torch.device) -> CLIP:
        return build_model(
            recipe.model,
            tokens=tokens,
            vocabulary=dataset.vocabulary,
            device=device,
            weights=weights,
        ).eval()

    return EvaluatedModel(
        build=build,
        model=recipe.model,
        own=recipe.stages[stage].tokens,
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
        evaluation=recipe.evaluation,
        stage=stage,
    )


def lengths(source: EvaluatedModel, image_px: int | None, text_tokens: int | None) -> TokenOptions:
    """The lengths to evaluate at, all tokens kept: the model's own where no other is asked for."""
    own, patch_px = source.own, source.model.image.patch_px
    image_px = own.image_px if image_px is None else image_px
    text_tokens = own.text_tokens if text_tokens is None else text_tokens
    specials = special_count(source.model.text.specials)
    if image_px < 1 or image_px % patch_px:
        raise ValueError(
            f"image_px={image_px}: the model's patches are {patch_px} px wide; change --image_px "
            f"to a multiple of {patch_px}"
        )
    if text_tokens <= specials:
        raise ValueError(
            f"text_tokens={text_tokens} leaves no room beside {specials} special token(s): change "
            f"--text_tokens to {specials + 1} or more"
        )
    return TokenOptions(image_px=image_px, text_tokens=text_tokens)


def _open_export(folder: Path, stage: str | None) -> EvaluatedModel:
    """An export by its own files alone."""
    if stage is not None:
        raise ValueError(f"stage={stage!r}: {folder} is an export, of one stage: leave --stage out")
    options, own = export_options(folder)
    first = load(folder)

    def build(tokens: TokenOptions, device: torch.device) -> CLIP:
        lengths = (tokens.image_px, tokens.text_tokens)
        if lengths == (own.image_px, own.text_tokens):
            return first.model.to(device)
        return load(folder, image_px=lengths[0], text_tokens=lengths[1]).model.to(device)

    return EvaluatedModel(
        build=build,
        model=options,
        own=own,
        tokenizer=first.tokenizer,
        normalisation=first.normalisation,
        evaluation=EvaluationOptions(),
    )
