"""Which of the recipes that come along fit a budget, best published accuracy first.

A recipe says in comment lines of its head what its source published, on which data, and what the
file lacks for that figure:

    # published: 67.8 % ImageNet-1k zero-shot, 628 A100-hours
    # data: LAION-400M, 400,000,000 pairs
    # lacks: the sample weights (--data.weights)
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pretrain.models.in_open_clip import inexpressible
from pretrain.plan.estimate import disk_bytes, stage_estimate
from pretrain.plan.hardware import Machine
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import StageOptions, plan_stages

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_LINE = r"^#\s*{}:\s*(.+?)\s*$"
_DATA = re.compile(r"(.+), ([\d,]+) pairs")
# Seconds or minutes of work, to see that all works: no way to spend a budget.
_TRIALS = {"tiny", "demo"}
_ACCURACY = re.compile(r"(\d+(?:\.\d+)?)\s*%")
# What every recipe needs and no plan reads.
PLACES = ["--data.train", "DATASET", "--run_dir", "RUN"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe with its published figure, and what it takes on a machine."""

    name: str
    head: "Head"
    opens_in_open_clip: bool
    hours: float | None = None  # None where it cannot be told
    disk_bytes: int | None = None  # the same
    remark: str | None = None  # why not


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a recipe's head says of its published run; None where it says nothing."""

    published: str | None = None
    accuracy: float | None = None  # percent
    data: str | None = None
    samples: int | None = None  # of the data
    lacks: str | None = None

    def __str__(self) -> str:
        told = self.published or "not published"
        told += f", on {self.data}" if self.data else ""
        return f"{told}; this recipe lacks {self.lacks} for it" if self.lacks else told


def read_head(text: str) -> Head:
    """The head of a recipe's text: its comments before the first option."""
    head = text[: match.start()] if (match := re.search(r"^[^#\s]", text, re.MULTILINE)) else text

    def line(name: str) -> str | None:
        found = re.search(_LINE.format(name), head, re.MULTILINE)
        return None if found is None else found[1]

    published = line("published")
    accuracy, data = _ACCURACY.search(published or ""), _DATA.fullmatch(line("data") or "")
    return Head(
        published=published,
        accuracy=None if accuracy is None else float(accuracy[1]),
        data=None if data is None else data[1],
        samples=None if data is None else int(data[2].replace(",", "")),
        lacks=line("lacks"),
    )


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
    """Every recipe on a machine but the trials: by accuracy, then by time; then those that lack
    what their figure takes; what cannot be told comes last."""
    found = [
        _candidate(path, machine, dataset_samples, vocab_size)
        for path in recipes
        if path.stem not in _TRIALS
    ]
    return sorted(
        found,
        key=lambda c: (c.hours is None, c.head.lacks is not None, -(c.head.accuracy or 0),
                       c.hours or 0, c.name),
    )  # fmt: skip


def _candidate(
    path: Path, machine: Machine, dataset_samples: int | None, vocab_size: int
) -> Candidate:
    head = read_head(path.read_text(encoding="utf-8"))
    # The recipe's own data.train and run_dir, where it has them, come later and win.
    recipe, _ = parse([*PLACES, "--config", str(path)])
    opens = not inexpressible(recipe.model)
    try:
        stages = plan_stages(recipe.stages, known_samples(recipe.stages, dataset_samples))
        estimates = [
            stage_estimate(recipe, stage, machine, vocab_size=vocab_size) for stage in stages
        ]
    except ValueError as error:
        return Candidate(name=path.stem, head=head, opens_in_open_clip=opens, remark=str(error))
    samples = dataset_samples or head.samples or max(e.samples for e in estimates)
    return Candidate(
        name=path.stem,
        head=head,
        opens_in_open_clip=opens,
        hours=sum(e.hours for e in estimates),
        disk_bytes=sum(disk_bytes(estimates, samples).values()),
    )
