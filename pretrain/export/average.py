"""The weighted average of several models' weights, as an exported folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.base.checks import differences
from pretrain.base.run_files import CHECKPOINTS, RECIPE_FILE
from pretrain.dataset.reader import Dataset
from pretrain.export.aside import folder_aside
from pretrain.export.native import export_config, load, native_config, write_native
from pretrain.export.options import AverageOptions
from pretrain.models.clip import without_classifier
from pretrain.models.starting import CONFIG_FILE
from pretrain.recipe.parsing import read_recipe
from pretrain.run.checkpoint import read_state, read_weights
from pretrain.run.stage_weights import read_finished_weights
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer

# What two models must have in common, beside the shapes of their weights.
_COMMON = ("model", "vocabulary", "normalisation", "tokenizer_sha256", "image_px", "text_tokens")


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One of the models that are averaged."""

    path: Path
    config: dict[str, Any]  # as an export's config.json
    weights: dict[str, Tensor]
    tokenizer: Tokenizer


def average_models(models: list[Path], options: AverageOptions) -> str:
    """Write the average to options.out; what was done, in a line. ValueError where the models are
    not of one shape, one tokenizer and one normalisation; nothing is written then.

    Of weights it is the arithmetic mean (model soups, arXiv 2203.05482; of two by alpha, WiSE-FT,
    arXiv 2109.01903), of logit scales, whose logarithm is trained, the geometric one.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} model given: name two or more to average")
    if options.alpha is not None and len(models) != 2:
        raise ValueError(f"--alpha {options.alpha} with {len(models)} models: it needs two models")
    shares = [1 / len(models)] * len(models)
    if options.alpha is not None:
        shares = [1 - options.alpha, options.alpha]
    members = [_read(path) for path in models]
    first = members[0]
    for other in members[1:]:
        _check_alike(first, other)
    weights = {
        name: _mean([one.weights[name] for one in members], shares) for name in first.weights
    }
    config = {**first.config, "logit_scale": math.exp(_figure(members, shares, "logit_scale"))}
    if "logit_bias" in config:
        config["logit_bias"] = _figure(members, shares, "logit_bias")
    with folder_aside(options.out, CONFIG_FILE) as aside:
        write_native(aside, config, weights, first.tokenizer)
        load(aside)  # finite, and whole
    parts = ", ".join(
        f"{share:.4g} of {one.path}" for one, share in zip(members, shares, strict=True)
    )
    return f"averaged into {options.out}: {parts}"


def _mean(tensors: list[Tensor], shares: list[float]) -> Tensor:
    """In float64, back in the first's type."""
    parts = [share * one.double() for share, one in zip(shares, tensors, strict=True) if share]
    return torch.stack(parts).sum(0).to(tensors[0].dtype)


def _figure(members: list[_Member], shares: list[float], name: str) -> float:
    values = [one.config[name] for one in members]
    if name == "logit_scale":
        values = [math.log(value) for value in values]
    return sum(share * value for share, value in zip(shares, values, strict=True))


def _check_alike(first: _Member, other: _Member) -> None:
    ours, theirs = ({n: one.config.get(n) for n in _COMMON} for one in (first, other))
    ours["loss"], theirs["loss"] = ("logit_bias" in one.config for one in (first, other))
    for name, mine, its in differences(ours, theirs, ""):
        raise ValueError(
            f"{other.path} has {name.lstrip('.')} {its}, {first.path} {mine}: an average needs "
            "models that differ in their weights alone"
        )


def _read(path: Path) -> _Member:
    """An export, a run's last stage, or a checkpoint of a run."""
    if (path / CONFIG_FILE).is_file():
        found = load(path)
        own = found.model
        figures = {"logit_scale": found.logit_scale}
        if found.logit_bias is not None:
            figures["logit_bias"] = found.logit_bias
        config = native_config(
            own.options,
            vocabulary=own.text.vocabulary,
            tokens=TokenOptions(image_px=own.image.image_px, text_tokens=own.text.text_tokens),
            normalisation=found.normalisation,
            figures=figures,
            tokenizer_sha256=found.tokenizer.sha256,
        )
        return _Member(
            path=path, config=config, weights=own.state_dict(), tokenizer=found.tokenizer
        )
    is_checkpoint = path.resolve().parent.name == CHECKPOINTS
    run = path.resolve().parent.parent if is_checkpoint else path
    if not (run / RECIPE_FILE).is_file():
        raise FileNotFoundError(
            f"{path} is not an exported model, a run folder or a checkpoint: give a folder of "
            "`python -m pretrain.export`, RUN, or RUN/checkpoints/STEP"
        )
    recipe = read_recipe(run)
    stage = list(recipe.stages)[-1]
    state = read_state(path) if is_checkpoint else None
    if state is not None and state.stage_step > 0:
        stage = list(recipe.stages)[state.stage]
        weights, objective = read_weights(path)
    else:
        if state is not None:  # it ended a stage, whose weights lie in the run folder
            stage = list(recipe.stages)[state.stage - 1]
        weights, objective = read_finished_weights(run, stage)
    return _Member(
        path=path,
        config=export_config(recipe, stage, objective),
        weights=without_classifier(weights),
        tokenizer=Dataset(recipe.data.train, recipe.data.tier, looks=False).tokenizer(),
    )
