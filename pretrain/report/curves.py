"""The curves section: every logged quantity over the samples seen."""

from collections.abc import Sequence

from pretrain.report import figures
from pretrain.report.chart import NARROW, Line, Mark, Point, line_chart
from pretrain.report.markup import Html, element, join, paragraph
from pretrain.report.run_folder import METRICS_FILE, Record, Run
from pretrain.report.summary import DIRECTIONS, objects, set_names


def curve_section(run: Run) -> Html:
    """Loss, accuracies, speed and schedules, with stage switches and resumes marked."""
    title = element("h2", None, "Curves")
    charts = [chart for chart in (*_training_charts(run), *_evaluation_charts(run)) if chart]
    small = [chart for chart in _running_charts(run) if chart]
    if not charts and not small:
        return join([title, paragraph(f"No step is recorded in {METRICS_FILE}.", kind="missing")])
    note = (
        "A solid vertical line is a stage switch"
        + (", a dotted one a resume" if run.resumes else "")
        + ". Faint lines are the logged steps, bold ones their moving mean within a stage; the "
        "legend gives the last logged value. In-batch accuracy is among the global batch, so it "
        "depends on the batch size and is no measure of quality on unseen data."
    )
    parts = [
        title,
        paragraph(note, kind="note"),
        element("div", {"class": "charts"}, *charts),
        element("div", {"class": "charts small"}, *small),
    ]
    if not run.evaluations:
        parts.append(
            paragraph(
                "There is no accuracy curve on held-out data: no evaluation during training is "
                f"recorded in {METRICS_FILE}.",
                kind="missing",
            )
        )
    return join(parts)


def _marks(run: Run) -> list[Mark]:
    stages = [
        Mark(x=float(stage.get("samples_seen") or 0), label=str(stage.get("stage")))
        for stage in run.stages
    ]
    resumes = [Mark(x=float(start.get("samples_seen") or 0)) for start in run.resumes]
    return [*resumes, *stages]


def _points(records: Sequence[Record], field: str, factor: float = 1.0) -> list[Point]:
    points = []
    for record in records:
        x, y = figures.number(record.get("samples_seen")), figures.number(record.get(field))
        if x is not None and y is not None:
            points.append((x, factor * y))
    return points


def _training_charts(run: Run) -> list[Html]:
    marks, limit = _marks(run), float(run.samples_seen)
    loss = Line(name="contrastive", points=_points(run.steps, "loss"), is_noisy=True)
    accuracy = [
        Line(
            name=label,
            points=_points(run.steps, f"{direction}_accuracy"),
            colour=colour,
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
            format_value=figures.percent,
            format_tick=_percent_tick,
            x_limit=limit,
            y_limit=1.0,
        ),
    ]


def _evaluation_charts(run: Run) -> list[Html]:
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
                        points=_recall_points(events, name, direction, "r@1"),
                        colour=colour + 2 * (lengths.index(tokens) % 2),
                        is_dashed=tokens != lengths[0],
                        has_dots=True,
                    )
                )
        chance = _recall_points(run.evaluations, name, DIRECTIONS[0][0], "chance_r@1")
        lines.append(Line(name="chance", points=sorted(set(chance)), colour=0, is_thin=True))
        charts.append(
            line_chart(
                f"R@1, {figures.readable(name)}",
                lines,
                marks,
                format_value=figures.percent,
                format_tick=_percent_tick,
                x_limit=limit,
                y_limit=1.0,
            )
        )
    return charts


def _recall_points(events: Sequence[Record], name: str, direction: str, field: str) -> list[Point]:
    points = []
    for event in events:
        scores = objects(objects(event.get("sets")).get(name)).get(direction, {})
        x, y = figures.number(event.get("samples_seen")), figures.number(scores.get(field))
        if x is not None and y is not None:
            points.append((x, y))
    return points


def _running_charts(run: Run) -> list[Html]:
    """Speed, waiting and schedules, one line a chart."""
    marks, limit = _marks(run), float(run.samples_seen)
    waits = []
    for step in run.steps:
        wait, whole = figures.number(step.get("data_wait_s")), figures.number(step.get("step_s"))
        if wait is not None and whole:
            waits.append({**step, "share": wait / whole})
    charts = []
    for title, points, colour, is_noisy, format_value in (
        ("Images per second", _points(run.steps, "images_per_s"), 1, True, figures.count),
        ("Step time", _points(run.steps, "step_s", 1000), 1, True, _milliseconds),
        ("Waiting for data", _points(waits, "share"), 2, True, figures.percent),
        ("Learning rate", _points(run.steps, "learning_rate"), 3, False, figures.decimal),
        ("Logit scale", _points(run.steps, "logit_scale"), 4, False, figures.decimal),
        ("Gradient norm", _points(run.steps, "grad_norm"), 4, True, figures.decimal),
    ):
        is_share = format_value is figures.percent
        charts.append(
            line_chart(
                title,
                [
                    Line(
                        name="of step time" if is_share else "",
                        points=points,
                        colour=colour,
                        is_noisy=is_noisy,
                    )
                ],
                marks,
                format_value=format_value,
                format_tick=_percent_tick if is_share else figures.short,
                x_limit=limit,
                y_reach=0.1 if is_share else 0,
                width=NARROW,
            )
        )
    return charts


def _milliseconds(value: float) -> str:
    return f"{figures.decimal(value)} ms"


def _percent_tick(value: float) -> str:
    return f"{100 * value:g} %"
