"""Evaluate a finished stage of a run, on the recipe's sets or others, on any number of ranks.

python -m pretrain.evaluate --run runs/demo [--stage full] [--image_px 64] [--text_tokens 24]
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from pretrain import distributed
from pretrain.data.dataset import Dataset
from pretrain.evaluation.evaluator import Evaluator
from pretrain.models.build import build_model
from pretrain.recipe import read_recipe
from pretrain.run.weights import read_stage_weights


def main(
    run: Path,
    stage: str | None = None,
    image_px: int | None = None,
    text_tokens: int | None = None,
    sets: dict[str, Path] | None = None,
    out: Path | None = None,
) -> None:
    """Retrieval and zero-shot accuracy of a trained model, with chance beside each figure.

    Args:
        run: Run folder of a finished training run.
        stage: Stage whose weights to evaluate; by default the recipe's last.
        image_px: Picture size; by default the stage's own.
        text_tokens: Context length; by default the stage's own.
        sets: Dataset directories by name; by default the recipe's evaluation sets.
        out: JSON file to write the figures to; by default they are only printed.
    """
    recipe = read_recipe(run)
    runtime = distributed.start()
    try:
        stage = stage or list(recipe.stages)[-1]
        dataset = Dataset(recipe.data.train, recipe.data.tier)
        evaluator = Evaluator(
            replace(recipe.evaluation, sets=sets or recipe.evaluation.sets),
            tier=recipe.data.tier,
            tokenizer=dataset.tokenizer(),
            normalisation=recipe.data.normalisation,
        )
        own = recipe.stages[stage].tokens
        weights, _ = read_stage_weights(run, stage)
        model = build_model(
            recipe.model,
            tokens=replace(
                own,
                image_px=image_px or own.image_px,
                text_tokens=text_tokens or own.text_tokens,
            ),
            vocab_size=dataset.manifest.tokenizer.vocab_size,
            device=runtime.device,
            weights=weights,
        )
        results = evaluator.evaluate(model)
        if runtime.is_main:
            print(table(results))
            if out is not None:
                out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    finally:
        distributed.stop()


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
