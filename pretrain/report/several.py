"""Several runs beside one another: figures, curves and what their recipes differ in."""

from collections.abc import Sequence
from typing import Any

import yaml

from pretrain.evaluation.task import shown_name
from pretrain.report import figures
from pretrain.report.chart import WIDE, Chart, Line, Point, line_chart, row_widths
from pretrain.report.curves import LOSS, QUANTITIES, Quantity, percent_tick, recall_points
from pretrain.report.run_folder import Run
from pretrain.report.summary import (
    by_key,
    figures_of,
    final_figures,
    headlines,
    question,
    set_names,
    summarize_stages,
    training_s,
)
from pretrain.report.table import Cell, Table

_COLOURS = 4
MOST = 2 * _COLOURS  # runs that a chart tells apart: four colours, solid and dashed


def names_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, with the folder above where two are called alike."""
    own = [run.name for run in runs]
    return [
        name if own.count(name) == 1 else f"{run.folder.resolve().parent.name}/{name}"
        for name, run in zip(own, runs, strict=True)
    ]


def figures_tables(runs: Sequence[Run], names: Sequence[str]) -> list[Table]:
    """The figures that each run ended with: its training, then every evaluation set."""
    head = ["run", "stages", "samples", "training time", "images/s, last stage", "loss"]
    rows: list[tuple[str, list[str | Cell]]] = []
    for run, run_name in zip(runs, names, strict=True):
        stages = summarize_stages(run)
        row: list[str | Cell] = [
            Cell(run_name, "" if run.is_finished else "not finished"),
            figures.count(len(stages)),
            figures.count(run.samples_seen),
            figures.duration(training_s(run)),
            figures.count(stages[-1].images_per_s if stages else None),
            figures.decimal(run.steps[-1].get("loss") if run.steps else None),
        ]
        rows.append(("", row))
    sets = set_names(one for run in runs for one in headlines(final_figures(run)))
    of_sets = [_set_table(name, runs, names) for name in sets]
    return [Table(title="Training", head=head, rows=rows), *of_sets]


def _set_table(name: str, runs: Sequence[Run], names: Sequence[str]) -> Table:
    """R@1 and top-1 of one evaluation set."""
    found = [by_key(headlines(final_figures(run)), name) for run in runs]
    columns = list(dict.fromkeys(key for one in found for key in one))
    head = ["run", *(f"{question(*key[:2])} {shown_name(key[2])}" for key in columns)]
    rows: list[tuple[str, list[str | Cell]]] = []
    for run_name, one in zip(names, found, strict=True):
        shown = [figures.points(one.get(key, {}).get("value")) for key in columns]
        rows.append(("", [run_name, *shown]))
    return Table(title=figures.readable(name), head=head, rows=rows)


def differences(runs: Sequence[Run], names: Sequence[str]) -> Table | None:
    """Options of the resolved recipes whose values are not the same in all runs; None where there
    are none. Where a run writes is no difference."""
    recipes = [_options(run) for run in runs]
    options = dict.fromkeys(option for recipe in recipes for option in recipe)
    rows = []
    for option in options:
        values = [recipe.get(option, figures.MISSING) for recipe in recipes]
        if option != "run_dir" and len(set(values)) > 1:
            rows.append(("", [option, *values]))
    return Table(head=["option", *names], rows=rows) if rows else None


def overlaid(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Loss and recall, then all else that is logged of the steps: one line a run."""
    found = [one for run in runs for event in run.evaluations for one in figures_of(event)]
    limit = float(max((run.samples_seen for run in runs), default=0))
    found_charts = [_chart(LOSS, runs, names, limit, WIDE)]
    for name in set_names(found):
        for key in by_key(found, name):
            if key[2] != "r@1":
                continue
            points = [recall_points(run, name, key) for run in runs]
            found_charts.append(
                line_chart(
                    f"{question(*key[:2])} R@1, {figures.readable(name)}",
                    _lines(runs, names, points, has_dots=True),
                    write_value=figures.percent,
                    write_tick=percent_tick,
                    x_limit=limit,
                    y_limit=1.0,
                )
            )
    charts = [chart for chart in found_charts if chart is not None]
    logged = [one for one in QUANTITIES if _find_logged(one, runs) is not None]
    widths = row_widths(len(charts) + len(logged), len(charts))[len(charts) :]
    more = [
        _chart(quantity, runs, names, limit, width)
        for quantity, width in zip(logged, widths, strict=True)
    ]
    return [*charts, *(chart for chart in more if chart is not None)]


def _chart(
    quantity: Quantity, runs: Sequence[Run], names: Sequence[str], limit: float, width: int
) -> Chart | None:
    """Of the first of its fields that any run has logged."""
    found = _find_logged(quantity, runs)
    if found is None:
        return None
    name, points = found
    title = quantity.title if not name else f"{quantity.title}, {name}"
    lines = _lines(runs, names, points, is_noisy=quantity.is_noisy)
    return quantity.chart(title, lines, (), limit, width)


def _find_logged(quantity: Quantity, runs: Sequence[Run]) -> tuple[str, list[list[Point]]] | None:
    """(its name, each run's points) of the first field that any run has logged."""
    for name, field in quantity.fields.items():
        points = [quantity.points(run, field) for run in runs]
        if any(points):
            return name, points
    return None


def _lines(
    runs: Sequence[Run], names: Sequence[str], points: Sequence[list[Point]], **kind: bool
) -> list[Line]:
    return [
        Line(
            name=name,
            points=of_run,
            colour=f"c{1 + place % _COLOURS}",
            is_dashed=place >= _COLOURS,
            breaks=[float(stage.get("samples_seen") or 0) for stage in run.stages],
            **kind,
        )
        for place, (run, name, of_run) in enumerate(zip(runs, names, points, strict=True))
    ]


def _options(run: Run) -> dict[str, str]:
    """The resolved recipe by full option name; nothing where it is not there or no YAML."""
    try:
        values = yaml.safe_load(run.recipe or "")
    except (ValueError, RecursionError, yaml.YAMLError):
        run.notes.append(f"recipe.yaml of {run.name} could not be read and is left out")
        return {}
    found: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, member in value.items():
                walk(member, f"{name}.{key}" if name else str(key))
        else:
            found[name] = "null" if value is None else str(value)

    if isinstance(values, dict):
        walk(values, "")
    return found
