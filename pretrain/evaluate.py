"""Evaluate an export or a finished stage of a run, on the recipe's sets or others, on any ranks.

python -m pretrain.evaluate --model runs/demo [--stage full] [--image_px 64] [--text_tokens 24]
python -m pretrain.evaluate --model EXPORT --classification.images DIR --classification.classes FILE
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
from pretrain.evaluation.options import EvaluationOptions
from pretrain.export.native import CONFIG_FILE, WEIGHTS_FILE, export_options, load
from pretrain.faults import ended_at_once, one_line_faults
from pretrain.files import write_durably
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP, ModelOptions
from pretrain.recipe import read_recipe
from pretrain.run.weights import read_stage_weights
from pretrain.tokens.context import special_count
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer


def main(
    model: Path | None = None,
    run_dir: Path | None = None,
    stage: str | None = None,
    image_px: int | None = None,
    text_tokens: int | None = None,
    sets: dict[str, Path] | None = None,
    classification: ClassificationOptions | None = None,
    out: Path | None = None,
) -> None:
    """Retrieval and zero-shot accuracy of a trained model, with chance beside each figure.

    Args:
        model: Folder of an exported model (native or transformers), or of a run.
        run_dir: Run folder of a training run: the same as --model.
        stage: Stage whose weights to evaluate; by default the recipe's last.
        image_px: Picture size; by default the stage's own.
        text_tokens: Context length; by default the stage's own.
        sets: Dataset directories by name; by default, unless a classification is asked for, the
            recipe's evaluation sets.
        classification: Zero-shot classification of a labelled set.
        out: JSON file to write the figures to; by default they are only printed.
    """
    with one_line_faults():
        folder = _one_of(model, run_dir)
        task = None if classification is None else Classification(classification)
        lengths = (image_px, text_tokens)
        if (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).is_file():
            subject = _exported(folder, stage, *lengths)
        else:
            subject = _trained(folder, stage, *lengths)
        options = subject.evaluation
        if sets is not None:
            options = _on_other_sets(options, sets)
        elif task is not None:
            options = replace(options, sets={}, zero_shot={})
        if not options.sets and task is None:
            raise ValueError(
                "there are no evaluation sets: give some by --sets.NAME DIR, or a labelled set by "
                "--classification.images DIR"
            )
        evaluator = Evaluator(
            options,
            image_sizes=[subject.image_px],
            tokenizer=subject.tokenizer,
            normalisation=subject.normalisation,
        )
    runtime = distributed.start()
    with ended_at_once():
        clip = subject.build(runtime.device)
        results = evaluator.evaluate(clip)
        if task is not None:
            figures = task.evaluate(clip, subject.tokenizer, subject.normalisation)
            results["classification"] = {"zero_shot": {task.options.images.name: figures}}
        if runtime.is_main:
            print(table(results))
            if out is not None:
                write_durably(out, json.dumps(results, indent=2) + "\n")
    distributed.stop()


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated: a model still to be put on a device, and how its inputs are made."""

    build: Callable[[torch.device], CLIP]
    tokenizer: Tokenizer
    normalisation: Normalisation
    image_px: int
    evaluation: EvaluationOptions


def _one_of(model: Path | None, run_dir: Path | None) -> Path:
    if (model is None) == (run_dir is None):
        raise ValueError(
            f"--model {model} and --run_dir {run_dir}: give one of them, the folder of an exported "
            "model or of a run"
        )
    return model or run_dir  # type: ignore[return-value]


def _exported(
    folder: Path, stage: str | None, image_px: int | None, text_tokens: int | None
) -> _Subject:
    """An export by its own files alone."""
    if stage is not None:
        raise ValueError(f"stage={stage!r}: {folder} is an export, of one stage: leave --stage out")
    options, own = export_options(folder)
    tokens = _tokens(options, own, image_px, text_tokens)
    one = load(folder, image_px=tokens.image_px, text_tokens=tokens.text_tokens)
    return _Subject(
        build=one.model.to,
        tokenizer=one.tokenizer,
        normalisation=one.normalisation,
        image_px=tokens.image_px,
        evaluation=EvaluationOptions(),
    )


def _trained(
    run_dir: Path, stage: str | None, image_px: int | None, text_tokens: int | None
) -> _Subject:
    """A finished stage of a run, with its training set's tokenizer."""
    recipe = read_recipe(run_dir)
    stage = stage or list(recipe.stages)[-1]
    weights, _ = read_stage_weights(run_dir, stage)
    tokens = _tokens(recipe.model, recipe.stages[stage].tokens, image_px, text_tokens)
    dataset = Dataset(recipe.data.train, recipe.data.tier)

    def build(device: torch.device) -> CLIP:
        return build_model(
            recipe.model,
            tokens=tokens,
            vocabulary=dataset.vocabulary,
            device=device,
            weights=weights,
        )

    return _Subject(
        build=build,
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
        image_px=tokens.image_px,
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


def _tokens(
    model: ModelOptions, own: TokenOptions, image_px: int | None, text_tokens: int | None
) -> TokenOptions:
    """The lengths to evaluate at, all tokens kept: the model's own where no other is asked for."""
    patch_px = model.image.patch_px
    image_px = own.image_px if image_px is None else image_px
    text_tokens = own.text_tokens if text_tokens is None else text_tokens
    specials = special_count(model.text.specials)
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


def table(results: dict[str, Any]) -> str:
    """The figures as lines of text, chance in brackets."""
    lines = []
    for name, result in results.items():
        for direction in ("image_to_text", "text_to_image"):
            one = result.get(direction)
            if one is None:
                continue
            recalls = "  ".join(
                f"R@{k} {one[f'r@{k}']:.1%} ({one[f'chance_r@{k}']:.2%})" for k in (1, 5, 10)
            )
            lines.append(f"{name}  {direction.replace('_', ' ')}  {recalls}  n={one['n']}")
        for column, one in result["zero_shot"].items():
            low, high = one["top1_ci95"]
            lines.append(
                f"{name}  zero-shot {column}  top-1 {one['top1']:.1%} "
                f"[95%: {low:.1%} to {high:.1%}] "
                f"({1 / one['classes']:.1%}; largest class {one['largest_class']:.1%})  "
                f"top-5 {one['top5']:.1%}  mean per class {one['mean_per_class_recall']:.1%}  "
                f"{one['classes']} classes"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
