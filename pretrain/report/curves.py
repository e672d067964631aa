"""The curves: every logged quantity over the samples seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pretrain.report import figures
from pretrain.report.chart import Chart, Line, Mark, Point, line_chart, row_widths
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import DIRECTIONS, Key, by_key, figures_of, question, set_names


def curves(run: Run) -> list[Chart]:
    """Loss and accuracies, in training and of every evaluation set; then speed, waiting, memory
    and schedules. What a run did not log has no chart."""
    found = [*_training_charts(run), *_evaluation_charts(run)]
    charts = [chart for chart in found if chart is not None]
    logged = [one for one in QUANTITIES if any(line.points for line in one.lines(run))]
    widths = row_widths(len(charts) + len(logged), len(charts))[len(charts) :]
    marks, limit = _marks(run), float(run.samples_seen)
    for quantity, width in zip(logged, widths, strict=True):
        chart = quantity.chart(quantity.title, quantity.lines(run), marks, limit, width)
        charts += [] if chart is None else [chart]
    return charts


def _marks(run: Run) -> list[Mark]:
    stages = [
        Mark(x=float(stage.get("samples_seen") or 0), label=str(stage.get("stage")))
        for stage in run.stages
    ]
    resumes = [Mark(x=float(start.get("samples_seen") or 0)) for start in run.resumes]
    return [*resumes, *stages]


def _points(records: Sequence[Record], field: str) -> list[Point]:
    """Samples seen and a field, of every record that has both as numbers."""
    points = []
    for record in records:
        x, y = figures.number(record.get("samples_seen")), figures.number(record.get(field))
        if x is not None and y is not None:
            points.append((x, y))
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
            write_tick=percent_tick,
            x_limit=limit,
            y_limit=1.0,
        ),
    ]


def recall_points(run: Run, name: str, key: Key) -> list[Point]:
    """A recall of an evaluation set at the token lengths that each stage trains with."""
    own = [event for event in run.evaluations if event.get("stage") == event.get("tokens")]
    return _figure_points(own or run.evaluations, name, key, "value")


def _figure_points(events: Sequence[Record], name: str, key: Key, field: str) -> list[Point]:
    """Samples seen and a field of a set's figure, of every evaluation that has it."""
    found = [(event.get("samples_seen"), by_key(figures_of(event), name)) for event in events]
    records = [{**one[key], "samples_seen": at} for at, one in found if key in one]
    return _points(records, field)


def _evaluation_charts(run: Run) -> list[Chart | None]:
    """Recall@1 of every evaluation set; the first stage's token lengths solid, others dashed."""
    marks, limit = _marks(run), float(run.samples_seen)
    evaluations = run.all_evaluations
    lengths = list(
        dict.fromkeys(str(event.get("tokens")) for event in evaluations if figures_of(event))
    )
    found = [one for event in evaluations for one in figures_of(event)]
    recalls = [one for one in found if one.get("name") == "r@1"]
    charts = []
    for name in set_names(recalls):
        keys = list(by_key(recalls, name))
        lines = []
        for tokens in lengths:
            events = [event for event in evaluations if str(event.get("tokens")) == tokens]
            for place, key in enumerate(keys):
                label = question(*key[:2])
                lines.append(
                    Line(
                        name=f"{label}, {tokens}" if len(lengths) > 1 else label,
                        points=_figure_points(events, name, key, "value"),
                        colour=f"c{1 + (place + 2 * (lengths.index(tokens) % 2)) % 4}",
                        is_dashed=tokens != lengths[0],
                        has_dots=True,
                    )
                )
        chance = _figure_points(evaluations, name, keys[0], "chance")
        lines.append(Line(name="chance", points=sorted(set(chance)), colour="soft", is_thin=True))
        charts.append(
            line_chart(
                f"R@1, {figures.readable(name)}",
                lines,
                marks,
                write_value=figures.percent,
                write_tick=percent_tick,
                x_limit=limit,
                y_limit=1.0,
            )
        )
    return charts


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One chart of a run's steps: fields of metrics.jsonl by the name of their line."""

    title: str
    fields: dict[str, str]
    colours: tuple[str, ...] = ("c1", "c2", "c3", "c4")
    write_value: Callable[[float], str] = figures.decimal
    write_tick: Callable[[float], str] = figures.short
    is_noisy: bool = True
    per: str | None = None
    """Field that the numbers are a share of."""

    def points(self, run: Run, field: str) -> list[Point]:
        if self.per is None:
            return _points(run.steps, field)
        shares = []
        for step in run.steps:
            part, whole = figures.number(step.get(field)), figures.number(step.get(self.per))
            if part is not None and whole:
                shares.append({**step, "share": part / whole})
        return _points(shares, "share")

    def lines(self, run: Run) -> list[Line]:
        return [
            Line(
                name=name,
                points=self.points(run, field),
                colour=colour,
                is_noisy=self.is_noisy,
            )
            for (name, field), colour in zip(self.fields.items(), self.colours, strict=False)
        ]

    def chart(
        self, title: str, lines: Sequence[Line], marks: Sequence[Mark], limit: float, width: int
    ) -> Chart | None:
        return line_chart(
            title,
            lines,
            marks,
            write_value=self.write_value,
            write_tick=self.write_tick,
            x_limit=limit,
            y_reach=0.1 if self.write_tick is percent_tick else 0,
            width=width,
        )


def percent_tick(value: float) -> str:
    return f"{100 * value:g} %"


LOSS = Quantity(title="Loss", fields={"": "loss"})
QUANTITIES = (
    Quantity(title="Images per second", fields={"": "images_per_s"}, write_value=figures.count),
    Quantity(title="Tokens per second", fields={"": "tokens_per_s"}, write_value=figures.count),
    Quantity(title="TFLOP per second", fields={"": "tflop_per_s"}, colours=("c3",)),
    Quantity(
        title="Share of the peak (MFU)",
        fields={"": "mfu"},
        colours=("c3",),
        write_value=figures.percent,
        write_tick=percent_tick,
    ),
    Quantity(
        title="Step time",
        fields={"": "step_s"},
        write_value=figures.short_span,
        write_tick=figures.short_span,
    ),
    Quantity(
        title="Waiting for data",
        fields={"of step time": "data_wait_s"},
        per="step_s",
        colours=("c2",),
        write_value=figures.percent,
        write_tick=percent_tick,
    ),
    Quantity(
        title="Time to features, by rank",
        fields={"slowest rank": "slowest_rank_ready_s", "median": "median_rank_ready_s"},
        colours=("c2", "c1"),
        write_value=figures.short_span,
        write_tick=figures.short_span,
    ),
    Quantity(
        title="Memory of a rank, GiB",
        fields={"device peak": "device_memory_peak_gib", "host": "host_memory_gib"},
        is_noisy=False,
    ),
    Quantity(title="Learning rate", fields={"": "learning_rate"}, colours=("c3",), is_noisy=False),
    Quantity(title="Logit scale", fields={"": "logit_scale"}, colours=("c4",), is_noisy=False),
    Quantity(title="Logit bias", fields={"": "logit_bias"}, colours=("c4",), is_noisy=False),
    Quantity(title="Caption classification loss", fields={"": "classification_loss"}),
    Quantity(title="Gradient norm", fields={"": "grad_norm"}, colours=("c4",)),
)
