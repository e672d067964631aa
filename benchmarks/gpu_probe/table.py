"""The rows as a table for people, and the goals beside what was measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_probe.rows import Row, read
from benchmarks.gpu_probe.steps import MEASURES, title

ALL = title(MEASURES)
SKIPPED = ("step", "name", "device", "losses", "measures", "cases", "end", "seconds")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure of one shape with every measure, on an H200."""

    shape: str
    figure: str  # images_per_s, share_of_peak, or times open_clip's images/s
    least: float


GOALS = (
    Goal(shape="b16_112_t16", figure="images_per_s", least=13_900.0),
    Goal(shape="b16_112_t16", figure="share_of_peak", least=0.41),
    Goal(shape="b16_112_t16", figure="images_per_s", least=15_700.0),
    Goal(shape="b16_112_t16", figure="share_of_peak", least=0.47),
    Goal(shape="l16_96_t8", figure="share_of_peak", least=0.50),
    Goal(shape="h14_84_t8", figure="share_of_peak", least=0.50),
    Goal(shape="b16_112_t16", figure="times open_clip", least=1.5),
    Goal(shape="l16_96_t8", figure="times open_clip", least=1.5),
)


def show(path: Path) -> str:
    """A line a row, by step, then the goals."""
    rows = read(path)
    lines = []
    for step in sorted({row["step"] for row in rows}):
        lines.append(f"\n{step}")
        lines += [one_line(row) for row in rows if row["step"] == step]
    lines.append("\ngoals")
    for goal in GOALS:
        found = figure(goal, rows)
        verdict = "not measured" if found is None else text(found)
        mark = "" if found is None else "  reached" if found >= goal.least else "  missed"
        lines.append(
            f"  {goal.shape:<12} {goal.figure:<16} at least {text(goal.least)}: {verdict}{mark}"
        )
    return "\n".join(lines).lstrip("\n")


def one_line(row: Row) -> str:
    words = [f"{k} {text(v)}" for k, v in row.items() if k not in SKIPPED and v is not None]
    return f"  {row['name']:<58} {', '.join(words)}"


def text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return " / ".join(f"{k} {text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " x ".join(map(text, value)) or "none"
    return str(value)


def figure(goal: Goal, rows: list[Row]) -> Any:
    """What was measured of a goal, or None."""
    named = {row["name"]: row for row in rows if row["step"] in ("C", "D", "G")}
    ours = named.get(f"{goal.shape} {ALL}", {})
    if goal.figure != "times open_clip":
        return ours.get(goal.figure)
    theirs = named.get(f"{goal.shape} open_clip", {})
    ours_per_s, theirs_per_s = (one.get("images_per_s") for one in (ours, theirs))
    return ours_per_s / theirs_per_s if ours_per_s and theirs_per_s else None
