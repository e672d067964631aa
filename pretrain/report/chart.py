"""Line and bar charts, drawn by matplotlib for the page.

The scales are linear and start at zero on the value axis, so that lengths may be compared.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pretrain.report import figures
from pretrain.report.theme import COLOURS, STYLE, inline, make_axes, plain

Point = tuple[float, float]

WIDE, NARROW, HEIGHT = 480, 372, 210  # px of a chart, two or three beside one another
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 22, 36
BAR, NAME_HEIGHT, GAP = 14, 20, 8  # px of a bar chart: a bar, a group's name above, below it
SMOOTHING_SHARE = 1 / 30  # width of the moving mean, of the points of one stage


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; points in drawing order."""

    name: str
    points: Sequence[Point]
    colour: str = "c1"
    """Name of a colour of the style sheet."""
    is_dashed: bool = False
    is_thin: bool = False
    """A reference such as chance: thin and dotted."""
    has_dots: bool = False
    """Whether each point gets a dot that tells its figures on hovering."""
    is_noisy: bool = False
    """Whether a moving mean is drawn over the faint points."""
    breaks: Sequence[float] = ()
    """Where that mean begins anew, beside the chart's marks: stages of this line alone."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line over the whole chart: a stage's begin (labelled) or a resume (dotted)."""

    x: float
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The mean of some values, with their range where there are several, or an interval."""

    name: str
    values: Sequence[float]
    colour: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a chart's legend."""

    name: str
    value: str
    swatch: str
    """CSS classes: a colour and a kind of line."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its title and legend, as the page shows it."""

    title: str
    width: int
    height: int
    drawing: Markup
    keys: list[Key]

    @property
    def is_narrow(self) -> bool:
        """Whether three, not two, stand beside one another."""
        return self.width <= NARROW


def row_widths(count: int, wide: int = 0) -> list[int]:
    """The width of each of `count` charts, so that rows of two WIDE, then of three NARROW are full.

    wide: the first so many are WIDE.
    """
    fitting = (two for two in range(wide, count + 1) if two % 2 == 0 and (count - two) % 3 == 0)
    two = next(fitting, count)
    return [WIDE] * two + [NARROW] * (count - two)


@rc_context(STYLE)  # type: ignore[arg-type]
def line_chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    write_value: Callable[[float], str] = figures.decimal,
    write_tick: Callable[[float], str] = figures.short,
    x_limit: float = 0,
    y_reach: float = 0,
    y_limit: float = math.inf,
    width: int = WIDE,
) -> Chart | None:
    """A chart over the samples seen whose legend has each line's last value; None without points.

    x_limit: the x axis reaches at least this far, so that a page's charts share one axis.
    y_reach, y_limit: the y axis reaches at least, and at most, this far (1 for rates).
    """
    drawn = [
        (line, [point for point in line.points if all(map(math.isfinite, point))]) for line in lines
    ]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return None
    x_top = max([x_limit, *(x for _, points in drawn for x, _ in points)]) or 1.0
    y_top = max(y_reach, *(y for _, points in drawn for _, y in points)) or 1.0
    y_ticks = round_ticks(min(y_top, y_limit), 4)
    x_ticks = [x for x in round_ticks(x_top, 5 if width == WIDE else 4) if x <= x_top * 1.0001]

    figure, axes = make_axes(width, HEIGHT, (LEFT, RIGHT, TOP, BOTTOM))
    axes.set(xlim=(0, x_top), ylim=(0, y_ticks[-1]), xlabel="samples seen")
    axes.set_xticks(x_ticks, map(figures.short, x_ticks))
    axes.set_yticks(y_ticks, map(write_tick, y_ticks))
    axes.grid(axis="y", clip_on=False)
    tips: dict[str, str] = {}
    _draw_marks(axes, marks, x_top, tips)
    borders = [mark.x for mark in marks if mark.label is not None]
    for line, points in drawn:
        _draw_line(axes, line, points, borders, tips, write_value)
    keys = [
        Key(name=line.name, value=write_value(points[-1][1]), swatch=_swatch(line))
        for line, points in drawn
    ]
    drawing = inline(figure, title, tips)
    return Chart(title=title, width=width, height=HEIGHT, drawing=drawing, keys=keys)


@rc_context(STYLE)  # type: ignore[arg-type]
def bar_chart(
    title: str,
    groups: dict[str, list[Bar]],
    *,
    references: Mapping[str, float] | None = None,
    reference_name: str = "",
    reach: float = 0,
    width: int = WIDE,
    names_px: int = 0,
) -> Chart:
    """Rates as bars, group by group, with a whisker over the range and a dot for every value.

    references: a rate by group, a line over its bars. reach: the axis goes at least so far.
    names_px: room for the groups' names left of the bars; 0: they stand above them.
    """
    references = references or {}
    bars = [bar for group in groups.values() for bar in group]
    top = max(reach, max((max(bar.values) for bar in bars), default=0)) or 1.0
    above = GAP / 2 if names_px else NAME_HEIGHT
    row = round(above) + (BAR + 2) * max(map(len, groups.values()), default=0) + GAP
    height = row * len(groups)
    figure, axes = make_axes(width, height, (4 + names_px, 58, 0, 0))
    axes.set(xlim=(0, top), ylim=(height, 0), xticks=[], yticks=[])
    tips: dict[str, str] = {}
    for i, (group, members) in enumerate(groups.items()):
        y, look = (above + BAR / 2, "center") if names_px else (above - 5, "baseline")
        shift: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
        axes.annotate(plain(group), (0, row * i + y), (-names_px, 0), va=look, **shift)
        for j, bar in enumerate(members):
            tips[f"bar-{i}-{j}"] = f"{group}, {bar.name}: {_spoken(bar)}"
            _draw_bar(axes, bar, row * i + above + (BAR + 2) * j + BAR / 2, f"bar-{i}-{j}")
        if group in references:
            gid, at = f"reference-{i}", references[group]
            tips[gid] = f"{group}, {reference_name}: {figures.percent(at)}"
            ends = (row * i + above - 2, row * i + above + (BAR + 2) * len(members))
            line: dict[str, Any] = {"color": COLOURS["ink"], "linewidth": 1.6, "clip_on": False}
            axes.plot([at, at], ends, linestyle=(0, (3, 2)), gid=gid, **line)
    members = max(groups.values(), key=len, default=[])
    keys = [Key(name=bar.name, value="", swatch=f"{bar.colour} block") for bar in members]
    if references:
        keys.append(Key(name=reference_name, value="", swatch="ink dashed"))
    drawing = inline(figure, title, tips)
    return Chart(title=title, width=width, height=height, drawing=drawing, keys=keys)


def _spoken(bar: Bar) -> str:
    text = figures.percent(sum(bar.values) / len(bar.values))
    if bar.interval is None:
        return text
    return f"{text}, 95 % interval {' to '.join(map(figures.percent, bar.interval))}"


def _draw_bar(axes: Axes, bar: Bar, y: float, gid: str) -> None:
    mean = sum(bar.values) / len(bar.values)
    patch = axes.barh(y, mean, BAR, color=COLOURS[bar.colour])[0]
    patch.set(gid=gid, linewidth=0, clip_on=False)
    end = max(bar.values)
    ink: dict[str, Any] = {"color": COLOURS["ink"], "linewidth": 1.2, "clip_on": False}
    if bar.interval is not None:
        end = max(end, bar.interval[1])
        axes.plot(bar.interval, [y, y], **ink)
    elif len(bar.values) > 1:
        axes.plot([min(bar.values), end], [y, y], **ink)
        dots: dict[str, Any] = {"markersize": 5, "markerfacecolor": COLOURS["card"]}
        axes.plot(bar.values, [y] * len(bar.values), "o", **ink, **dots)
    place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(figures.percent(mean), (end, y), annotation_clip=False, **place)


def moving_mean(values: Sequence[float], half: int) -> np.ndarray:
    """Each value's mean with the values up to `half` places to its either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    begin, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[end] - sums[begin]) / (end - begin)


def round_ticks(top: float, steps: int) -> list[float]:
    """Round values from 0 upwards; the last is the first that reaches `top`."""
    values = MaxNLocator(steps, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top)
    return [float(value) for value in values]


def _swatch(line: Line) -> str:
    kinds = [line.colour, "dashed" * line.is_dashed, "thin" * line.is_thin]
    return " ".join(filter(None, kinds))


def _draw_marks(axes: Axes, marks: Sequence[Mark], x_top: float, tips: dict[str, str]) -> None:
    above = axes.get_xaxis_transform()  # y from 0, the chart's floor, to 1, its ceiling
    for i, mark in enumerate(marks):
        x = min(mark.x, x_top)
        line: dict[str, Any] = {"color": COLOURS["mark"], "gid": f"mark-{i}", "clip_on": False}
        if mark.label is None:
            tips[f"mark-{i}"] = f"resumed at {figures.count(mark.x)} samples"
            axes.plot([x, x], [0, 1], transform=above, linewidth=1, linestyle=(0, (1.5, 3)), **line)
            continue
        if mark.x > 0:
            tips[f"mark-{i}"] = f"stage {mark.label} begins at {figures.count(mark.x)} samples"
            axes.plot([x, x], [0, 1.05], transform=above, linewidth=1.2, **line)
        is_right = x > 0.7 * x_top  # there a label beside the line would leave the chart
        axes.annotate(
            plain(mark.label, limit=24),
            (x, 1),
            (-4 if is_right else 4, 5),
            xycoords=above,
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=COLOURS["mark"],
            weight="bold",
        )


def _draw_line(
    axes: Axes,
    line: Line,
    points: list[Point],
    borders: Sequence[float],
    tips: dict[str, str],
    write_value: Callable[[float], str],
) -> None:
    """One line; a noisy one as faint points under its moving mean, stage by stage."""
    look: dict[str, Any] = {
        "color": COLOURS[line.colour],
        "clip_on": False,
        "solid_capstyle": "butt",
    }
    dashes = (0, (2, 3)) if line.is_thin else (0, (5, 3.5)) if line.is_dashed else "solid"
    gid = f"line-{len(tips)}"
    tips[gid] = line.name
    width = 1.0 if line.is_thin or line.is_noisy else 1.9
    alpha = 0.33 if line.is_noisy else None
    x, y = zip(*points, strict=True)
    axes.plot(x, y, gid=gid, linewidth=width, linestyle=dashes, alpha=alpha, **look)
    borders = sorted({*borders, *line.breaks})
    for begin, end in zip([-math.inf, *borders], [*borders, math.inf], strict=True):
        part = [point for point in points if begin < point[0] <= end]
        if line.is_noisy and part:
            x, y = zip(*part, strict=True)
            half = max(2, round(len(part) * SMOOTHING_SHARE / 2))
            axes.plot(x, moving_mean(y, half), linewidth=1.9, **look)
    for point in points if line.has_dots else []:
        gid = f"dot-{len(tips)}"
        tips[gid] = f"{line.name}: {write_value(point[1])} at {figures.count(point[0])} samples"
        axes.plot(*point, "o", gid=gid, markersize=4.4, markeredgewidth=0, **look)
