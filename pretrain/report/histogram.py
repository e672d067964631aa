"""Histograms, drawn as the page's other charts are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from pretrain.report import figures
from pretrain.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDE,
    Chart,
    Key,
    round_ticks,
)
from pretrain.report.theme import COLOURS, STYLE, inline, make_axes, plain

LEAST_BINS = 12  # so that a single value is a bar among empty places, not the whole chart


@dataclass(frozen=True, kw_only=True)
class Bin:
    """How many values there are from `low` to `high`, and what to call them on hovering."""

    low: float
    high: float
    count: int
    name: str


@rc_context(STYLE)  # type: ignore[arg-type]
def histogram(
    title: str,
    bins: Sequence[Bin],
    x_label: str,
    *,
    width: int = WIDE,
    colour: str = "c1",
    keys: Mapping[str, str] | None = None,
    marks: Mapping[float, str] | None = None,
    names: Mapping[float, str] | None = None,
) -> Chart:
    """Counts from 0 upwards over the values' own scale.

    keys: figures for the legend. marks: vertical lines with a label, left out where they lie
    beyond the bins. names: labels at places of the x axis instead of numbers.
    """
    left, right = bins[0].low, bins[-1].high
    lacking = max(LEAST_BINS * (bins[0].high - left) - (right - left), 0) if names is None else 0
    left, right = max(left - lacking / 2, min(left, 0)), right + lacking / 2
    total = sum(one.count for one in bins) or 1
    ticks = round_ticks(max(one.count for one in bins) or 1, 4)
    figure, axes = make_axes(width, HEIGHT, (LEFT, RIGHT, TOP, BOTTOM))
    axes.set(xlim=(left, right), ylim=(0, ticks[-1]), xlabel=plain(x_label))
    if names is None:
        found = MaxNLocator(5, steps=[1, 2, 5, 10], integer=right - left > 3).tick_values(
            left, right
        )
        places = {float(x): figures.short(x) for x in found if left <= x <= right}
    else:
        places = dict(names)
    axes.set_xticks(list(places), list(places.values()))
    axes.set_yticks(ticks, map(figures.short, ticks))
    axes.grid(axis="y", clip_on=False)
    tips: dict[str, str] = {}
    for i, one in enumerate(bins):
        if one.count:
            tips[f"bin-{i}"] = f"{one.name}: {one.count:,} ({figures.percent(one.count / total)})"
            middle, wide = (one.low + one.high) / 2, (one.high - one.low) * 0.9
            bar = axes.bar(middle, one.count, wide, color=COLOURS[colour])[0]
            bar.set(gid=f"bin-{i}", linewidth=0)
    above = axes.get_xaxis_transform()
    for x, label in (marks or {}).items():
        if left < x < right:
            axes.axvline(x, color=COLOURS["mark"], linewidth=1.2, linestyle=(0, (3, 2)))
            axes.text(x, 1.02, plain(label), transform=above, ha="center", color=COLOURS["soft"])
    legend = [Key(name=name, value=value, swatch="none") for name, value in (keys or {}).items()]
    drawing = inline(figure, title, tips)
    return Chart(title=title, width=width, height=HEIGHT, drawing=drawing, keys=legend)
