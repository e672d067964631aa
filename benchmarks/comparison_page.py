"""The comparison: the run beside other trainings of the same budget."""

from pathlib import Path

from benchmarks.comparison_file import read_rows
from pretrain.base.files import write_durably
from pretrain.report import figures
from pretrain.report.chart import Bar, Chart, bar_chart
from pretrain.report.run_folder import Record, Run, read_run
from pretrain.report.summary import (
    DIRECTIONS,
    Spread,
    final_figures,
    objects,
    sets_of,
    spread,
    training_s,
)
from pretrain.report.table import Cell, Table
from pretrain.report.template import template

THIS_RUN = "this run"


def write_comparison_page(run_dir: Path, file: Path) -> Path:
    """The rows of a comparison file beside a run, as a page next to the file."""
    run, rows = read_run(run_dir), read_rows(file)
    budgets = {row.get("seconds_budget") for row in rows} - {None}
    page = template("comparison.html", Path(__file__).parent).render(
        run=run,
        compared=comparison_of(run, rows),
        seconds_budget=next(iter(budgets), None),
        this_run=THIS_RUN,
    )
    path = file.with_suffix(".html")
    write_durably(path, page.encode("utf-8", errors="replace"))
    return path


def comparison_of(run: Run, rows: list[Record]) -> tuple[Table, list[Chart]] | None:
    """Table and bars of the rows, by name over seeds, the run itself first; None without rows."""
    groups = {**_own_row(run), **group_comparison(rows)}
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


def group_comparison(rows: object) -> dict[str, list[Record]]:
    """The rows of a comparison file by name, in the order in which the names first come."""
    groups: dict[str, list[Record]] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            groups.setdefault(str(row.get("name", figures.MISSING)), []).append(row)
    return groups
