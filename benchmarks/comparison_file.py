"""The comparison file: trainings of equal time, row by row, beside which a run is reported."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.base.files import write_durably
from pretrain.dataset.reader import Dataset
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import plan_stages
from pretrain.run.continuation import list_fixed


def recipe_sha256(recipe: Recipe) -> str:
    """Of all that decides a training but its seed: a row's recipe."""
    stages = plan_stages(recipe.stages, len(Dataset(recipe.data.train, recipe.data.tier)))
    values = list_fixed(replace(recipe, seed=0), stages, recipe.engine.precision)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows so far, none if there is no file. ValueError if it is no comparison file."""
    if not path.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a comparison file ({error!r}): remove it, or give another --out"
        ) from error
    return rows


def check_beside(path: Path, row: dict[str, Any]) -> None:
    """ValueError unless a row may stand beside those of a file.

    All rows are of one machine and one time budget, those of one name of one recipe. Of `row`,
    what is not known yet may be left out.
    """
    for other in read_rows(path):
        shared = ["seconds_budget", "machine"]
        if other["name"] == row["name"]:
            shared.append("recipe_sha256")
        for key in shared:
            if key in row and row[key] != other.get(key):
                theirs, ours = _difference(other.get(key), row[key])
                raise ValueError(
                    f"{path} holds rows of another {key} ({theirs}; asked for now: {ours}): "
                    "give another --out, or remove the file"
                )


def put_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row; one of the same name and seed is replaced, so a seed never counts twice."""
    check_beside(path, row)
    kept = [
        other
        for other in read_rows(path)
        if (other["name"], other["seed"]) != (row["name"], row["seed"])
    ]
    comparison = {"seconds_budget": row["seconds_budget"], "rows": [*kept, row]}
    write_durably(path, json.dumps(comparison, indent=2) + "\n")


def _difference(theirs: Any, ours: Any) -> tuple[str, str]:
    """Two unlike values as short texts; of two objects, the members that differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        unlike = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
        pair = tuple(", ".join(f"{k} {one.get(k)}" for k in unlike) for one in (theirs, ours))
        return pair[0], pair[1]
    return str(theirs)[:12], str(ours)[:12]
