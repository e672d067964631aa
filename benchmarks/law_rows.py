"""The rows of a sweep, one file a finished run, and what they say: drops, noise, costs."""

import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison_file import recipe_sha256
from benchmarks.law_sweep import Cell, Sweep, Training
from benchmarks.trainings import run_row
from pretrain.base.files import rename_durably, write_durably
from pretrain.report.run_folder import read_run
from pretrain.report.summary import DIRECTIONS, collect_results, sets_of, summarize_stages

Row = dict[str, Any]
SWEEP_FILE = "sweep.json"
_ROWS = "rows"
START_S = 20.0  # of a run, before its first event: launcher, DeepSpeed's import, the data's checks


def own_folder(out: Path, sweep: Sweep) -> None:
    """Make a results folder this sweep's. ValueError if it is another's."""
    if not (out / SWEEP_FILE).is_file():
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        if any(not name.startswith(SWEEP_FILE) for name in names):
            raise ValueError(f"{out} holds something that is no sweep: give another --out")
        # The tasks of an array begin at once: each writes aside under a name of its own.
        own = out / f"{SWEEP_FILE}.{os.uname().nodename}.{os.getpid()}"
        write_durably(own, json.dumps(sweep.identity(), indent=2) + "\n")
        rename_durably(own, out / SWEEP_FILE)
    check_folder(out, sweep)


def check_folder(out: Path, sweep: Sweep) -> None:
    """ValueError unless a results folder is this sweep's."""
    path, asked = out / SWEEP_FILE, sweep.identity()
    if not path.is_file():
        raise ValueError(f"{out} holds no sweep ({SWEEP_FILE} is missing): check --out")
    found = _read_object(path)
    unlike = [key for key in sorted({*asked, *found}) if asked.get(key) != found.get(key)]
    if unlike:
        raise ValueError(
            f"{out} holds the results of another sweep (another {', '.join(unlike)}): give "
            "another --out, or the --config that it was made with"
        )


def row_path(out: Path, cell: Cell) -> Path:
    """Where a cell's row lies."""
    return out / _ROWS / f"{cell.name}.json"


def read_rows(out: Path, cells: Iterable[Cell]) -> list[Row]:
    """The rows of finished runs, in the cells' order."""
    paths = [row_path(out, cell) for cell in cells]
    return [_read_object(path) for path in paths if path.is_file()]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not what a sweep writes: remove it, and run again")
    return content


def check_rows(rows: list[Row], trainings: list[Training]) -> None:
    """ValueError on a row that another recipe made than its cell's is now."""
    asked = {one.cell.name: one.recipe for one in trainings}
    for row in rows:
        if row["recipe_sha256"] != recipe_sha256(asked[row["name"]]):
            raise ValueError(
                f"the row {row['name']} was made by another recipe than its cell has now: give "
                "another --out, or put the recipe back"
            )


def put_row(out: Path, training: Training, run: Path, machine: dict[str, Any]) -> Row:
    """Write the row of a finished run."""
    first, last = training.recipe.stages
    made = run_row(run, list(training.recipe.evaluation.sets))
    at = {
        (result.after, result.record["tokens"]): sets_of(result.figures)
        for result in collect_results(read_run(run))
    }
    row = {
        "name": training.cell.name,
        "cell": asdict(training.cell),
        "recipe_sha256": recipe_sha256(training.recipe),
        "samples": training.samples,
        "seconds": made["seconds"],
        "wall_s": START_S + sum(stage.wall_s or 0.0 for stage in summarize_stages(read_run(run))),
        "flops": training.flops,
        "accuracy": {
            "reduced_at_own_lengths": at[first, first],
            "reduced_at_full_lengths": at[first, last],
            "full": at[last, last],
        },
        "machine": machine,
        "commit": made["commit"],
        "date": made["date"],
        "run": made["run"],
    }
    write_durably(row_path(out, training.cell), json.dumps(row, indent=2) + "\n")
    return row


def estimate_s(rows: list[Row], flops: float) -> float | None:
    """Clock time that a run of so many FLOPs will take, by a line through the rows; None without.

    A run costs something a sample and something a FLOP, and all runs have the same samples.
    """
    if not rows:
        return None
    known = np.array([[row["flops"], row["wall_s"]] for row in rows])
    mean_flops, mean_s = known.mean(0)
    if np.ptp(known[:, 0]) < 0.2 * mean_flops:  # too close together to tell a slope
        return float(mean_s * max(1.0, flops / mean_flops))
    slope, floor = np.polyfit(known[:, 0], known[:, 1], 1)
    # Another job on the machine can turn the slope around.
    return float(max(floor + max(slope, 0.0) * flops, known[:, 1].min()))


def level(row: Row, drawn_set: str, when: str = "full") -> float:
    """Mean of both directions' R@1 on a set."""
    sets = row["accuracy"][when][drawn_set]
    return statistics.fmean(sets[way]["r@1"] for way, _ in DIRECTIONS)


Place = tuple[str, int, int, str, str]  # a cell without its seed


def place(row: Row) -> Place:
    """A row's cell without its seed."""
    cell = row["cell"]
    names = ("size", "image_tokens", "text_tokens", "image_reduction", "text_reduction")
    return tuple(cell[name] for name in names)  # type: ignore[return-value]


def levels(rows: list[Row], drawn_set: str, when: str = "full") -> dict[Place, float]:
    """Each cell's accuracy, a mean over its seeds."""
    found: dict[Place, list[float]] = {}
    for row in rows:
        found.setdefault(place(row), []).append(level(row, drawn_set, when))
    return {where: statistics.fmean(values) for where, values in found.items()}


def noise(rows: list[Row], drawn_set: str) -> float | None:
    """Standard deviation of one run's accuracy over seeds, pooled over cells that have several."""
    found: dict[Place, list[float]] = {}
    for row in rows:
        found.setdefault(place(row), []).append(level(row, drawn_set))
    several = [values for values in found.values() if len(values) > 1]
    if not several:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return float((squares / sum(len(values) - 1 for values in several)) ** 0.5)


def axis_cells(sweep: Sweep, axis: str, size: str) -> list[tuple[int, Place]]:
    """(tokens, cell without seed) along an axis of lengths at one size, the longest first."""
    middle = Cell(
        size=size, image_tokens=sweep.middle.image_tokens, text_tokens=sweep.middle.text_tokens
    )
    found = []
    for tokens in sorted(getattr(sweep, axis), reverse=True):
        at = asdict(middle) | {axis: tokens}
        found.append((tokens, place({"cell": at})))
    return found


def drops(sweep: Sweep, rows: list[Row], axis: str, size: str) -> list[tuple[int, float]]:
    """(tokens, accuracy lost against the axis's longest length) after the full stage, at a size.

    Only of lengths that have rows; none at all where the longest one has none.
    """
    known = levels(rows, sweep.drawn_set)
    along = axis_cells(sweep, axis, size)
    longest = known.get(along[0][1])
    if longest is None:
        return []
    return [(tokens, longest - known[where]) for tokens, where in along if where in known]
