"""The comparison file: trainings of equal time, row by row, beside which a run is reported."""

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path, seconds_budget: float) -> list[dict[str, Any]]:
    """The rows so far; none if there is no file. ValueError if it is of another budget."""
    if not path.is_file():
        return []
    comparison = json.loads(path.read_text(encoding="utf-8"))
    if comparison["seconds_budget"] != seconds_budget:
        raise ValueError(
            f"--seconds {seconds_budget:g} asked for, the rows of {path} had "
            f"{comparison['seconds_budget']:g}: give the same, or another --out"
        )
    rows: list[dict[str, Any]] = comparison["rows"]
    return rows


def put_row(path: Path, seconds_budget: float, row: dict[str, Any]) -> None:
    """Add a row; one of the same name and seed is replaced, so a seed never counts twice."""
    kept = [
        other
        for other in read_rows(path, seconds_budget)
        if (other["name"], other["seed"]) != (row["name"], row["seed"])
    ]
    comparison = {"seconds_budget": seconds_budget, "rows": [*kept, row]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
