"""The picture of a sweep, of as many rows as there are: drops, accuracy by FLOPs, reducers."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.law_rows import Place, Row, drops, level, levels, noise, place
from benchmarks.law_sweep import RESIZE, TRUNCATE, Sweep
from pretrain.base.files import aside

PICTURE = "law"
_AXES = {"image_tokens": "image", "text_tokens": "text"}
_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": PICTURE,  # the same bytes for the same rows
}
_MARKERS = "osD^vP"


def write_picture(out: Path, sweep: Sweep, rows: list[Row]) -> list[Path]:
    """Draw the rows into the results folder, as SVG and as PNG."""
    figure = draw(sweep, rows)
    paths = []
    for kind, metadata in (("svg", {"Date": None}), ("png", {})):
        path = out / f"{PICTURE}.{kind}"
        with rc_context(_STYLE), aside(path) as file:  # type: ignore[arg-type]
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        paths.append(path)
    return paths


@rc_context(_STYLE)  # type: ignore[arg-type]
def draw(sweep: Sweep, rows: list[Row]) -> Figure:
    """Four charts: the drop over image and over text tokens, accuracy by FLOPs, the reducers.

    A cell without a row leaves a gap; a size without its longest length has no line.
    """
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    (image, text), (compute, reducers) = figure.subplots(2, 2)
    text.sharey(image)
    spread = noise(rows, sweep.drawn_set)
    for axes, axis in ((image, "image_tokens"), (text, "text_tokens")):
        _draw_drops(axes, sweep, rows, axis, spread)
    _draw_compute(compute, sweep, rows, spread)
    _draw_reducers(reducers, sweep, rows, spread)
    figure.suptitle(_headline(sweep, rows, spread), x=0.01, ha="left", fontsize=9.5)
    return figure


def _headline(sweep: Sweep, rows: list[Row], spread: float | None) -> str:
    said = (
        "No cell has a second seed: no error bars."
        if spread is None
        else f"Error bars: ± one standard deviation over seeds ({spread:.1%} for one run), of the "
        "cells that have several."
    )
    return (
        f"Accuracy: mean R@1 of both directions on {sweep.drawn_set} after the full stage, of "
        f"{len(rows)} runs.\n{said}"
    )


def _draw_drops(axes: Axes, sweep: Sweep, rows: list[Row], axis: str, spread: float | None) -> None:
    lengths = sorted(getattr(sweep, axis))
    axes.axhline(0, color="0.6", linewidth=0.8)
    for number, size in enumerate(sweep.sizes):
        points = drops(sweep, rows, axis, size)
        if points:
            x, y = zip(*points, strict=True)
            # A drop is a difference of two runs; the longest length's is 0 by definition.
            bar = (
                None
                if spread is None
                else [0.0 if a == lengths[-1] else spread * 2**0.5 for a in x]
            )
            axes.errorbar(x, y, bar, label=size, **_look(number))
    if not axes.get_legend_handles_labels()[0]:
        _say_empty(axes)
    else:
        axes.legend(title="size")
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(lengths, map(str, lengths))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    kind = _AXES[axis]
    axes.set(
        title=f"Accuracy lost against {lengths[-1]} {kind} tokens",
        xlabel=f"{kind} tokens of the reduced stage",
        ylabel="drop, points of R@1",
    )


def _draw_compute(axes: Axes, sweep: Sweep, rows: list[Row], spread: float | None) -> None:
    known = levels(rows, sweep.drawn_set)
    cost: dict[Place, float] = {place(row): row["flops"] for row in rows}
    for number, size in enumerate(sweep.sizes):
        points = sorted((cost[where], known[where]) for where in known if where[0] == size)
        if points:
            x, y = zip(*points, strict=True)
            look = _look(number) | {"linestyle": "none"}
            axes.errorbar(x, y, spread, label=size, **look)
    if known:
        axes.legend(title="size")
        axes.set_xscale("log")
    else:
        _say_empty(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(
        title="Accuracy by compute, all lengths and reducers",
        xlabel="training FLOPs of both stages",
        ylabel="R@1",
    )


def ranked_reducers(sweep: Sweep, rows: list[Row]) -> list[tuple[str, float, float]]:
    """(name, accuracy after the full stage, after the reduced one) of the reducers, best first.

    Image ways first, then text ways; resize and truncation at the same length are among them.
    """
    if (of := sweep.reducers) is None:
        return []
    size, middle = sweep.middle.size, sweep.middle
    final = levels(rows, sweep.drawn_set)
    reduced = levels(rows, sweep.drawn_set, "reduced_at_full_lengths")
    found = []
    for kind, ways in (("image", [RESIZE, *of.image]), ("text", [TRUNCATE, *of.text])):
        places: dict[str, Place] = {
            way: (size, of.image_tokens, middle.text_tokens, way, TRUNCATE)
            if kind == "image"
            else (size, middle.image_tokens, of.text_tokens, RESIZE, way)
            for way in ways
        }
        tokens = of.image_tokens if kind == "image" else of.text_tokens
        rated = [
            (f"{kind} {tokens}: {way}", final[where], reduced[where])
            for way, where in places.items()
            if where in final
        ]
        found += sorted(rated, key=lambda one: -one[1])
    return found


def _draw_reducers(axes: Axes, sweep: Sweep, rows: list[Row], spread: float | None) -> None:
    ranked = ranked_reducers(sweep, rows)
    axes.set_title(f"Ways to reduce, size {sweep.middle.size}")
    if not ranked:
        _say_empty(axes)
        return
    names, final, reduced = zip(*ranked, strict=True)
    y = range(len(names))
    colours = ["C0" if name.startswith("image") else "C1" for name in names]
    axes.barh(y, final, 0.62, xerr=spread, color=colours, alpha=0.75, label="after the full stage")
    axes.plot(reduced, y, "|", color="0.2", markersize=11, label="before it, at full lengths")
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("R@1")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize=8)


def _look(number: int) -> dict[str, Any]:
    return {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 5, "capsize": 3,
            "color": f"C{number}"}  # fmt: skip


def _say_empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no rows yet", transform=axes.transAxes, ha="center", color="0.5")


def table(sweep: Sweep, rows: list[Row]) -> str:
    """A line a row for the terminal, R@1 in percent."""
    widest = max((len(row["name"]) for row in rows), default=0)
    head = f"{'':{widest}}  samples  seconds   PFLOPs  reduced, own lengths  at full  after full"
    lines = [head]
    for row in rows:
        own, at_full, full = (
            level(row, sweep.drawn_set, when)
            for when in ("reduced_at_own_lengths", "reduced_at_full_lengths", "full")
        )
        lines.append(
            f"{row['name']:{widest}}  {sum(row['samples'].values()):7}  {row['seconds']:7.0f}  "
            f"{row['flops'] / 1e15:7.3f}  {own:20.1%}  {at_full:7.1%}  {full:10.1%}"
        )
    return "\n".join(lines)
