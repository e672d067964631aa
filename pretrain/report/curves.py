"""The curves: every logged quantity over the samples seen."""

from collections.abc import Sequence
from typing import Any

from pretrain.report import figures
from pretrain.report.chart import NARROW, Chart, Line, Mark, Point, line_chart
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import DIRECTIONS, objects, set_names


def curves(run: Run) -> list[Chart]:
    """Loss and accuracies, in training and of every evaluation set."""
    charts = [*_training_charts(run), *_evaluation_charts(run)]
    return [chart for chart in charts if chart is not None]


def _marks(run: Run) -> list[Mark]:
    stages = [
        Mark(x=float(stage.get("samples_seen") or 0), label=str(stage.get("stage")))
        for stage in run.stages
    ]
    resumes = [Mark(x=float(start.get("samples_seen") or 0)) for start in run.resumes]
    return [*resumes, *stages]


def _points(records: Sequence[Record], *path: str, factor: float = 1.0) -> list[Point]:
    """Samples seen and the member at this path, of every record that has both as numbers."""
    points = []
    for record in records:
        member: Any = record
        for key in path:
            member = member.get(key) if isinstance(member, dict) else None
        x, y = figures.number(record.get("samples_seen")), figures.number(member)
        if x is not None and y is not None:
            points.append((x, factor * y))
    return points


def _training_charts(run: Run) -> list[Chart | None]:
    marks, limit = _marks(run), float(run.samples_seen)
    loss = Line(name="loss", points=_points(run.steps, "loss"), is_noisy=True)
    accuracy = [
        Line(
            name=label,
            points=_points(run.steps, f"{direction}_accuracy"),
            colour=f"c{colour}",
            is_noisy=True,
        )
        for colour, (direction, label) in enumerate(DIRECTIONS, start=1)
    ]
    return [
        line_chart("Loss", [loss], marks, x_limit=limit),
        line_chart(
            "In-batch accuracy (training)",
            accuracy,
            marks,
            write_value=figures.percent,
            write_tick=_percent_tick,
            x_limit=limit,
            y_limit=1.0,
        ),
    ]


def _evaluation_charts(run: Run) -> list[Chart | None]:
    """Recall@1 of every evaluation set; the first stage's token lengths solid, others dashed."""
    marks, limit = _marks(run), float(run.samples_seen)
    names = set_names(objects(event.get("sets")) for event in run.evaluations)
    lengths = list(dict.fromkeys(str(event.get("tokens")) for event in run.evaluations))
    charts = []
    for name in names:
        lines = []
        for tokens in lengths:
            events = [event for event in run.evaluations if str(event.get("tokens")) == tokens]
            for colour, (direction, label) in enumerate(DIRECTIONS, start=1):
                lines.append(
                    Line(
                        name=f"{label}, {tokens}" if len(lengths) > 1 else label,
                        points=_points(events, "sets", name, direction, "r@1"),
                        colour=f"c{colour + 2 * (lengths.index(tokens) % 2)}",
                        is_dashed=tokens != lengths[0],
                        has_dots=True,
                    )
                )
        chance = _points(run.evaluations, "sets", name, DIRECTIONS[0][0], "chance_r@1")
        lines.append(Line(name="chance", points=sorted(set(chance)), colour="soft", is_thin=True))
        charts.append(
            line_chart(
                f"R@1, {figures.readable(name)}",
                lines,
                marks,
                write_value=figures.percent,
                write_tick=_percent_tick,
                x_limit=limit,
                y_limit=1.0,
            )
        )
    return charts


def running_curves(run: Run) -> list[Chart]:
    """Speed, waiting and schedules, one line a chart."""
    marks, limit = _marks(run), float(run.samples_seen)
    waits = []
    for step in run.steps:
        wait, whole = figures.number(step.get("data_wait_s")), figures.number(step.get("step_s"))
        if wait is not None and whole:
            waits.append({**step, "share": wait / whole})
    charts = []
    for title, points, colour, is_noisy, write_value in (
        ("Images per second", _points(run.steps, "images_per_s"), "c1", True, figures.count),
        ("Step time", _points(run.steps, "step_s", factor=1000), "c1", True, _milliseconds),
        ("Waiting for data", _points(waits, "share"), "c2", True, figures.percent),
        ("Learning rate", _points(run.steps, "learning_rate"), "c3", False, figures.decimal),
        ("Logit scale", _points(run.steps, "logit_scale"), "c4", False, figures.decimal),
        ("Logit bias", _points(run.steps, "logit_bias"), "c4", False, figures.decimal),
        ("Gradient norm", _points(run.steps, "grad_norm"), "c4", True, figures.decimal),
    ):
        is_share = write_value is figures.percent
        name = "of step time" if is_share else ""
        chart = line_chart(
            title,
            [Line(name=name, points=points, colour=colour, is_noisy=is_noisy)],
            marks,
            write_value=write_value,
            write_tick=_percent_tick if is_share else figures.short,
            x_limit=limit,
            y_reach=0.1 if is_share else 0,
            width=NARROW,
        )
        charts.append(chart)
    return [chart for chart in charts if chart is not None]


def _milliseconds(value: float) -> str:
    return f"{figures.decimal(value)} ms"


def _percent_tick(value: float) -> str:
    return f"{100 * value:g} %"
