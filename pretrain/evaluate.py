"""Evaluate an export or a finished stage of a run, on the recipe's sets or others, on any ranks.

python -m pretrain.evaluate --model runs/demo [--stage full] [--image_px 64] [--text_tokens 24]
python -m pretrain.evaluate --model EXPORT --classification.images DIR --classification.classes FILE
python -m pretrain.evaluate --model EXPORT --probe.train DIR --probe.test DIR
python -m pretrain.evaluate --model M --abilities true --tokens.image_px [32,64] --tokens.plot F.svg
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from pretrain import distributed
from pretrain.data.augment import Normalisation
from pretrain.data.dataset import Dataset
from pretrain.evaluation.classification import Classification, ClassificationOptions
from pretrain.evaluation.evaluator import Evaluator, metadata_columns
from pretrain.evaluation.options import AbilitiesOptions, EvaluationOptions
from pretrain.evaluation.probe import Probe, ProbeOptions
from pretrain.evaluation.sweep import (
    Axis,
    SweepOptions,
    draw_sweep,
    kept_tokens,
    point_record,
    sweep_points,
)
from pretrain.evaluation.table import table
from pretrain.export.native import CONFIG_FILE, WEIGHTS_FILE, export_options, load
from pretrain.faults import ended_at_once, one_line_faults
from pretrain.files import write_durably
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP, ModelOptions
from pretrain.recipe import read_recipe
from pretrain.run.weights import read_stage_weights
from pretrain.tokens.context import special_count
from pretrain.tokens.image_reduction import kept_count
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer

# A collective waits for the main rank, which alone fits the linear probe: hours on large sets.
_TIMEOUT_S = 24 * 3600.0


def main(
    model: Path | None = None,
    run_dir: Path | None = None,
    stage: str | None = None,
    image_px: int | None = None,
    text_tokens: int | None = None,
    sets: dict[str, Path] | None = None,
    captions: list[str] | None = None,
    classification: ClassificationOptions | None = None,
    probe: ProbeOptions | None = None,
    abilities: AbilitiesOptions | bool = False,
    tokens: SweepOptions | None = None,
    out: Path | None = None,
) -> None:
    """Retrieval and zero-shot accuracy of a trained model, with chance beside each figure.

    Args:
        model: Folder of an exported model (native or transformers), or of a run.
        run_dir: Run folder of a training run: the same as --model.
        stage: Stage whose weights to evaluate; by default the recipe's last.
        image_px: Picture size; by default the stage's own.
        text_tokens: Context length; by default the stage's own.
        sets: Dataset directories by name; by default, unless another task is asked for, the
            recipe's evaluation sets.
        captions: Names of the captions that count as a picture's own; by default the recipe's,
            which by default are each set's first.
        classification: Zero-shot classification of a labelled set.
        probe: Linear probe and k-nearest neighbours on frozen features of two labelled sets.
        abilities: Counting, digits, words, position, binding, size, rotation and texture, on
            pictures drawn for it by a seed: true, or its options.
        tokens: Lengths to compare the same weights at, with a plot.
        out: JSON file to write the figures to; by default they are only printed.
    """
    with one_line_faults():
        folder = _one_of(model, run_dir)
        task = None if classification is None else Classification(classification)
        fitted = None if probe is None else Probe(probe)
        if (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).is_file():
            subject = _exported(folder, stage)
        else:
            subject = _trained(folder, stage)
        own = _tokens(subject, image_px, text_tokens)
        points = [] if tokens is None else _checked_points(tokens, own, subject)
        options = subject.evaluation
        if sets is not None:
            options = _on_other_sets(options, sets)
        elif task is not None or fitted is not None or abilities:
            options = replace(options, sets={}, zero_shot={}, abilities=False)
        if abilities:
            options = replace(options, abilities=abilities)
        if captions is not None:
            options = replace(options, captions=captions)
        evaluator = Evaluator(
            options,
            image_sizes={one.image_px for _, one in points} or {own.image_px},
            tokenizer=subject.tokenizer,
            normalisation=subject.normalisation,
        )
        if not evaluator.judges and task is None and fitted is None:
            raise ValueError(
                "there are no evaluation sets: give some by --sets.NAME DIR, labelled ones by "
                "--classification.images DIR or --probe.train DIR --probe.test DIR, or "
                "draw some by --abilities true"
            )
    runtime = distributed.start(timeout_s=_TIMEOUT_S)

    def judge(lengths: TokenOptions) -> dict[str, Any]:
        clip, kept = subject.build(lengths, runtime.device), kept_tokens(lengths)
        results = evaluator.evaluate(clip, kept)
        if task is not None:
            figures = task.evaluate(clip, subject.tokenizer, subject.normalisation, kept)
            results["classification"] = {"zero_shot": {task.options.images.name: figures}}
        if fitted is not None:
            figures = fitted.evaluate(clip, subject.normalisation, runtime.is_main, kept)
            results["probe"] = figures
        if drawn := evaluator.abilities(clip, kept):
            results["abilities"] = drawn
        return results

    with ended_at_once():
        if tokens is None:
            results = judge(own)
            if runtime.is_main:
                print(table(results))
        else:
            results = _sweep(points, judge, subject.model.image.patch_px, runtime.is_main)
            if runtime.is_main and tokens.plot is not None:
                draw_sweep(results["points"], str(folder), tokens.plot)
        if runtime.is_main and out is not None:
            write_durably(out, json.dumps(results, indent=2) + "\n")
    distributed.stop()


def _sweep(
    points: list[tuple[Axis, TokenOptions]],
    judge: Callable[[TokenOptions], dict[str, Any]],
    patch_px: int,
    is_main: bool,
) -> dict[str, Any]:
    """{points: [record]} on the main rank; lengths that two axes share are judged once."""
    found: dict[TokenOptions, dict[str, Any]] = {}
    records = []
    for axis, lengths in points:
        if lengths not in found:
            found[lengths] = judge(lengths)
        if is_main:
            record = point_record(axis, lengths, patch_px, found[lengths])
            records.append(record)
            print(
                f"{lengths.image_px} px, {record['image_tokens']} image and "
                f"{lengths.text_tokens} text tokens\n{table(found[lengths])}",
                flush=True,
            )
    return {"points": records}


def _checked_points(
    options: SweepOptions, own: TokenOptions, subject: "_Subject"
) -> list[tuple[Axis, TokenOptions]]:
    points = sweep_points(options, own)
    for axis, lengths in points:
        try:
            _tokens(subject, lengths.image_px, lengths.text_tokens)
            grid = lengths.image_px // subject.model.image.patch_px
            kept_count(lengths.image_reduction, grid, lengths.image_keep_tokens)
        except ValueError as error:
            raise ValueError(f"tokens.{axis}: {error}") from error
    return points


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated: a model still to be put on a device, and how its inputs are made."""

    build: Callable[[TokenOptions, torch.device], CLIP]
    model: ModelOptions
    own: TokenOptions
    tokenizer: Tokenizer
    normalisation: Normalisation
    evaluation: EvaluationOptions


def _one_of(model: Path | None, run_dir: Path | None) -> Path:
    if (model is None) == (run_dir is None):
        raise ValueError(
            f"--model {model} and --run_dir {run_dir}: give one of them, the folder of an exported "
            "model or of a run"
        )
    return model or run_dir  # type: ignore[return-value]


def _exported(folder: Path, stage: str | None) -> _Subject:
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

    return _Subject(
        build=build,
        model=options,
        own=own,
        tokenizer=first.tokenizer,
        normalisation=first.normalisation,
        evaluation=EvaluationOptions(),
    )


def _trained(run_dir: Path, stage: str | None) -> _Subject:
    """A finished stage of a run, with its training set's tokenizer."""
    recipe = read_recipe(run_dir)
    stage = stage or list(recipe.stages)[-1]
    weights, _ = read_stage_weights(run_dir, stage)
    dataset = Dataset(recipe.data.train, recipe.data.tier, looks=False)

    def build(tokens: TokenOptions, device: torch.device) -> CLIP:
        return build_model(
            recipe.model,
            tokens=tokens,
            vocabulary=dataset.vocabulary,
            device=device,
            weights=weights,
        ).eval()

    return _Subject(
        build=build,
        model=recipe.model,
        own=recipe.stages[stage].tokens,
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
        evaluation=recipe.evaluation,
    )


def _on_other_sets(options: EvaluationOptions, sets: dict[str, Path]) -> EvaluationOptions:
    """The recipe's tasks on given sets; those whose column a set lacks are left out, and said."""
    tasks = dict(options.zero_shot)
    for name, directory in sets.items():
        columns = metadata_columns(f"evaluation.sets.{name}", directory)
        for column in [column for column in tasks if column not in columns]:
            print(f"zero-shot {column} is left out: {directory} has no such metadata", flush=True)
            del tasks[column]
    return replace(options, sets=sets, zero_shot=tasks)


def _tokens(subject: _Subject, image_px: int | None, text_tokens: int | None) -> TokenOptions:
    """The lengths to evaluate at, all tokens kept: the model's own where no other is asked for."""
    own, patch_px = subject.own, subject.model.image.patch_px
    image_px = own.image_px if image_px is None else image_px
    text_tokens = own.text_tokens if text_tokens is None else text_tokens
    specials = special_count(subject.model.text.specials)
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


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
