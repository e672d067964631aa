"""The comparison: the run beside other trainings of the same budget."""

import json
from pathlib import Path

from pretrain.report import figures
from pretrain.report.chart import Bar, Chart, bar_chart
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import (
    DIRECTIONS,
    Spread,
    final_figures,
    group_comparison,
    objects,
    sets_of,
    spread,
    training_s,
)
from pretrain.report.table import Cell, Table

THIS_RUN = "this run"


def read_comparison(path: Path) -> Record:
    """A comparison file. FileNotFoundError or ValueError name the file and the remedy."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no comparison file {path}: leave --comparison out, or write one with "
            f"`python -m benchmarks.cnn_baseline --out {path}`"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"comparison file {path} is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list):
        raise ValueError(f"comparison file {path} has no list `rows`: it was not written by us")
    return value


def comparison_of(run: Run, comparison: Record) -> tuple[Table, list[Chart]] | None:
    """Table and bars of the rows, by name over seeds, the run itself first; None without rows."""
    groups = {**_own_row(run), **group_comparison(comparison["rows"])}
    sets = [objects(row.get("sets")) for rows in groups.values() for row in rows]
    names = [
        name
        for name in dict.fromkeys(name for one in sets for name in one)
        if any(way in one.get(name, {}) for one in sets for way, _ in DIRECTIONS)
    ]
    if not names:
        return None
    return _table(groups, names), [_bars(name, groups) for name in names]


def _own_row(run: Run) -> dict[str, list[Record]]:
    sets = sets_of(final_figures(run))
    if not sets:
        return {}
    seconds = training_s(run)
    row = {"sets": sets, "samples": run.samples_seen, "seconds": seconds}
    if seconds is not None:
        row["images_per_s"] = run.samples_seen / seconds
    return {THIS_RUN: [row]}


def _table(groups: dict[str, list[Record]], names: list[str]) -> Table:
    spans = [("", 5), *((figures.readable(name), 2) for name in names)]
    head = ["", "seeds", "seconds", "samples", "images/s"]
    head += [label for _ in names for _, label in DIRECTIONS]
    body: list[tuple[str, list[str | Cell]]] = []
    for group, rows in groups.items():
        cells: list[str | Cell] = [group, figures.count(len(rows))]
        for field, write in (("seconds", figures.decimal), ("samples", figures.count)):
            mean = spread(row.get(field) for row in rows)
            cells.append(write(mean.mean) if mean else figures.MISSING)
        speed = spread(row.get("images_per_s") for row in rows)
        cells.append(figures.count(speed.mean) if speed else figures.MISSING)
        for name in names:
            for direction, _ in DIRECTIONS:
                cells.append(_spread_cell(_rates(rows, name, direction)))
        body.append(("final" if group == THIS_RUN else "", cells))
    chance: list[str | Cell] = ["chance", "", "", "", ""]
    for name in names:
        for direction, _ in DIRECTIONS:
            known = [_rates(rows, name, direction, "chance_r@1") for rows in groups.values()]
            first = next((rate for rate in known if rate is not None), None)
            chance.append(figures.MISSING if first is None else figures.points(first.mean))
    body.append(("chance", chance))
    return Table(spans=spans, head=head, rows=body)


def _rates(rows: list[Record], name: str, direction: str, field: str = "r@1") -> Spread | None:
    sets = [objects(objects(row.get("sets")).get(name)) for row in rows]
    return spread(one.get(direction, {}).get(field) for one in sets)


def _spread_cell(recall: Spread | None) -> str | Cell:
    if recall is None:
        return figures.MISSING
    mean = figures.points(recall.mean)
    if len(recall.values) == 1:
        return mean
    low, high = figures.points(min(recall.values)), figures.points(max(recall.values))
    return Cell(mean, f"{low} to {high}")


def _bars(name: str, groups: dict[str, list[Record]]) -> Chart:
    bars: dict[str, list[Bar]] = {}
    for group, rows in groups.items():
        bars[group] = []
        for colour, (direction, label) in enumerate(DIRECTIONS, start=1):
            recall = _rates(rows, name, direction)
            if recall is not None:
                bars[group].append(Bar(name=label, values=recall.values, colour=f"c{colour}"))
    return bar_chart(f"R@1 compared, {figures.readable(name)}", bars)
