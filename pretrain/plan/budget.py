"""Which of the recipes that come along fit a budget, best published accuracy first.

A recipe says what its source published in a comment line of its head:

    # published: 67.8 % ImageNet-1k zero-shot, 628 A100-hours
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pretrain.plan.estimate import stage_estimate
from pretrain.plan.hardware import Machine
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import StageOptions, plan_stages

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_LINE = re.compile(r"^#\s*published:\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_ACCURACY = re.compile(r"(\d+(?:\.\d+)?)\s*%")
# What every recipe needs and no plan reads.
PLACES = ["--data.train", "DATASET", "--run_dir", "RUN"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe with its published figure and its time on a machine."""

    name: str
    published: str | None
    accuracy: float | None  # percent
    hours: float | None  # None where it cannot be told
    remark: str | None  # why not


def published(text: str) -> tuple[str | None, float | None]:
    """(figure as written, accuracy in percent) of a recipe's text; None where it has none."""
    head = text[: match.start()] if (match := re.search(r"^[^#\s]", text, re.MULTILINE)) else text
    line = _LINE.search(head)
    if line is None:
        return None, None
    accuracy = _ACCURACY.search(line[1])
    return line[1], None if accuracy is None else float(accuracy[1])


def known_samples(stages: dict[str, StageOptions], dataset_samples: int | None) -> int:
    """The dataset's size; without one, any that the stages' own lengths do not depend on.
    ValueError where a stage's length needs it."""
    if dataset_samples is not None:
        return dataset_samples
    for name, stage in stages.items():
        if stage.epochs is not None:
            raise ValueError(
                f"stages.{name}.epochs={stage.epochs:g} needs the dataset's size: give "
                f"--dataset_samples N, or the length as --stages.{name}.samples"
            )
    return max(stage.global_batch_samples for stage in stages.values())


def candidates(
    recipes: list[Path], machine: Machine, *, dataset_samples: int | None, vocab_size: int
) -> list[Candidate]:
    """Every recipe on a machine: by accuracy, then by time; what cannot be told comes last."""
    found = [_candidate(path, machine, dataset_samples, vocab_size) for path in recipes]
    return sorted(found, key=lambda c: (c.hours is None, -(c.accuracy or 0), c.hours or 0, c.name))


def _candidate(
    path: Path, machine: Machine, dataset_samples: int | None, vocab_size: int
) -> Candidate:
    figure, accuracy = published(path.read_text(encoding="utf-8"))
    hours, remark = None, None
    try:
        # The recipe's own data.train and run_dir, where it has them, come later and win.
        recipe, _ = parse([*PLACES, "--config", str(path)])
        stages = plan_stages(recipe.stages, known_samples(recipe.stages, dataset_samples))
        hours = sum(
            stage_estimate(recipe, stage, machine, vocab_size=vocab_size).hours for stage in stages
        )
    except ValueError as error:
        remark = str(error)
    return Candidate(
        name=path.stem, published=figure, accuracy=accuracy, hours=hours, remark=remark
    )
