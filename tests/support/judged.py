"""Figures of an evaluation, looked up by name."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.evaluation.task import Figure


def looked_up(figures: Iterable[Figure | dict[str, Any]], task: str) -> dict[str, Any]:
    """{set: {part: {name: value, chance_name, name_ci95 where known, n, and the facts}}}."""
    found: dict[str, Any] = {}
    fixed = {"task", "set", "part", "name", "value", "chance", "interval"}
    for figure in figures:
        one = figure.record() if isinstance(figure, Figure) else figure
        if one["task"] == task:
            part = found.setdefault(one["set"], {}).setdefault(one["part"], {})
            part |= {one["name"]: one["value"], f"chance_{one['name']}": one["chance"]}
            if one["interval"] is not None:
                part[f"{one['name']}_ci95"] = one["interval"]
            part |= {name: fact for name, fact in one.items() if name not in fixed}
    return found


def points_of(file: Path) -> list[dict[str, Any]]:
    """The evaluated points of a file of results."""
    return json.loads(file.read_text())["points"]


def last_figures(file: Path) -> list[dict[str, Any]]:
    return points_of(file)[-1]["figures"]
