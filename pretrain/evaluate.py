"""Evaluate a finished stage of a run, on the recipe's sets or others, on any number of ranks.

python -m pretrain.evaluate --run_dir runs/demo [--stage full] [--image_px 64] [--text_tokens 24]
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from pretrain import distributed
from pretrain.data.dataset import Dataset
from pretrain.evaluation.evaluator import Evaluator, metadata_columns
from pretrain.evaluation.options import EvaluationOptions
from pretrain.faults import ended_at_once, one_line_faults
from pretrain.files import write_durably
from pretrain.models.build import build_model
from pretrain.recipe import Recipe, read_recipe
from pretrain.run.weights import read_stage_weights
from pretrain.tokens.context import special_count
from pretrain.tokens.options import TokenOptions


def main(
    run_dir: Path,
    stage: str | None = None,
    image_px: int | None = None,
    text_tokens: int | None = None,
    sets: dict[str, Path] | None = None,
    out: Path | None = None,
) -> None:
    """Retrieval and zero-shot accuracy of a trained model, with chance beside each figure.

    Args:
        run_dir: Run folder of a training run.
        stage: Stage whose weights to evaluate; by default the recipe's last.
        image_px: Picture size; by default the stage's own.
        text_tokens: Context length; by default the stage's own.
        sets: Dataset directories by name; by default the recipe's evaluation sets.
        out: JSON file to write the figures to; by default they are only printed.
    """
    with one_line_faults():
        recipe = read_recipe(run_dir)
        stage = stage or list(recipe.stages)[-1]
        weights, _ = read_stage_weights(run_dir, stage)
        tokens = _tokens(recipe, stage, image_px, text_tokens)
        options = recipe.evaluation if sets is None else _on_other_sets(recipe.evaluation, sets)
        if not options.sets:
            raise ValueError("the recipe names no evaluation sets: give some by --sets.NAME DIR")
        dataset = Dataset(recipe.data.train, recipe.data.tier)
        evaluator = Evaluator(
            options,
            image_sizes=[tokens.image_px],
            tokenizer=dataset.tokenizer(),
            normalisation=recipe.data.normalisation,
        )
    runtime = distributed.start()
    with ended_at_once():
        model = build_model(
            recipe.model,
            tokens=tokens,
            vocab_size=dataset.manifest.tokenizer.vocab_size,
            device=runtime.device,
            weights=weights,
        )
        results = evaluator.evaluate(model)
        if runtime.is_main:
            print(table(results))
            if out is not None:
                write_durably(out, json.dumps(results, indent=2) + "\n")
    distributed.stop()


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
    recipe: Recipe, stage: str, image_px: int | None, text_tokens: int | None
) -> TokenOptions:
    """The lengths to evaluate at, all tokens kept: a stage's own where no other is asked for."""
    own, patch_px = recipe.stages[stage].tokens, recipe.model.image.patch_px
    image_px = own.image_px if image_px is None else image_px
    text_tokens = own.text_tokens if text_tokens is None else text_tokens
    specials = special_count(recipe.model.text.specials)
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
            one = result[direction]
            recalls = "  ".join(
                f"R@{k} {one[f'r@{k}']:.1%} ({one[f'chance_r@{k}']:.2%})" for k in (1, 5, 10)
            )
            lines.append(f"{name}  {direction.replace('_', ' ')}  {recalls}  n={one['n']}")
        for column, one in result["zero_shot"].items():
            lines.append(
                f"{name}  zero-shot {column}  top-1 {one['top1']:.1%} "
                f"({1 / one['classes']:.1%}; largest class {one['largest_class']:.1%})  "
                f"top-5 {one['top5']:.1%}  {one['classes']} classes"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
