"""What every evaluation task is, and the figures that it gives. No torch: the report reads them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pretrain.base.run_files import AVERAGED

if TYPE_CHECKING:
    from pretrain.evaluation.features import Subject
    from pretrain.evaluation.options import EvaluationOptions
    from pretrain.evaluation.sets import Sets

HEADLINES = ("r@1", "top1")  # the names of figures that stand for their task in a line or a plot


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of an evaluation, with what it is to be read beside."""

    task: str
    set: str = ""
    """Name of the data; empty where a task brings its own."""
    part: str = ""
    """Which of a task's questions: a direction, a column, an ability; empty where there is one."""
    name: str
    """What is counted: r@1, r@5, r@10, top1, top5, mean_per_class_recall."""
    value: float
    chance: float | None
    """What guessing gets."""
    interval: tuple[float, float] | None = None
    """Its 95 % interval."""
    n: int
    """Queries, or pictures."""
    facts: Mapping[str, float | str] = field(default_factory=dict)
    """What else belongs to it: classes, largest_class, tier."""

    @property
    def label(self) -> str:
        """What it is, for people."""
        words = [self.task, self.set, self.part, shown_name(self.name)]
        return " ".join(word for word in words if word).replace("_", " ")

    def record(self) -> dict[str, Any]:
        """The flat JSON object that results, events and watched lines hold; facts last."""
        return {
            "task": self.task,
            "set": self.set,
            "part": self.part,
            "name": self.name,
            "value": self.value,
            "chance": self.chance,
            "interval": None if self.interval is None else list(self.interval),
            "n": self.n,
            **self.facts,
        }


class Task(Protocol):
    """One thing to judge models by; its data are opened once, and models come one after another."""

    name: str
    """The `task` of its figures."""
    is_quick: bool
    """Whether it is judged during a stage too, not only at its end."""

    @classmethod
    def open(cls, options: "EvaluationOptions", sets: "Sets") -> "Task | None":
        """The task, its options and data checked; None where it is not asked for. ValueError names
        the option."""

    def evaluate(self, subject: "Subject") -> list[Figure]:
        """Collective. Ranks other than the main one may give less."""


def shown_name(name: str) -> str:
    """A figure's name as people write it: R@1, top-1."""
    return name.replace("r@", "R@").replace("top", "top-").replace("_", " ")


def mark_averaged(figures: Iterable[Figure]) -> list[Figure]:
    """The figures of averaged weights, told from the plain ones' by their set: SET.ema."""
    return [replace(one, set=(one.set + AVERAGED).lstrip(".")) for one in figures]


def group_figures(figures: Iterable[Figure]) -> dict[tuple[str, str, str], list[Figure]]:
    """Figures by (task, set, part)."""
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for one in figures:
        groups.setdefault((one.task, one.set, one.part), []).append(one)
    return groups
