"""Line charts as inline SVG: no script, colours from the page's style sheet.

The scales are linear and start at zero on the y axis, so that heights may be compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pretrain.report import figures
from pretrain.report.markup import Html, element, escaped, join

Point = tuple[float, float]

WIDE, NARROW, HEIGHT = 560, 372, 220  # px of a chart, two or three beside one another
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 22, 34
MAX_POINTS = 800  # a longer line is drawn as means of equal runs of points
SMOOTHING_SHARE = 1 / 30  # width of the moving mean, of the points of one stage


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; points in drawing order."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    """Number of a series colour of the style sheet, 1 to 4."""
    is_dashed: bool = False
    is_thin: bool = False
    """A reference such as chance: thin, without a figure in the legend's bold type."""
    has_dots: bool = False
    """Whether each point gets a dot that tells its figures on hovering."""
    is_noisy: bool = False
    """Whether a moving mean is drawn over the faint points."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line over the whole chart: a stage's begin (labelled) or a resume (faint)."""

    x: float
    label: str | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    format_value: Callable[[float], str] = figures.decimal,
    format_tick: Callable[[float], str] = figures.short,
    x_limit: float = 0,
    y_reach: float = 0,
    y_limit: float = math.inf,
    width: int = WIDE,
) -> Html:
    """A figure with title, legend (each line's last value) and chart, or nothing without points.

    x_limit: the x axis reaches at least this far, so that a page's charts share one axis.
    y_reach, y_limit: the y axis reaches at least, and at most, this far (1 for rates).
    """
    finite = [
        [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)] for line in lines
    ]
    if not any(finite):
        return Html("")
    x_top = max([x_limit, *(x for points in finite for x, _ in points)]) or 1.0
    y_top = max(y_reach, *(y for points in finite for _, y in points)) or 1.0
    y_top = min(y_top * 1.02, y_limit)
    y_ticks = ticks(y_top, target=4)
    y_top = max(y_ticks[-1], y_top)

    def place(point: Point) -> Point:
        x = LEFT + (width - LEFT - RIGHT) * point[0] / x_top
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * point[1] / y_top

    drawn = [_axes(x_top, y_ticks, width, place, format_tick), _marks(marks, x_top, place)]
    borders = [mark.x for mark in marks if mark.label is not None]
    for line, points in zip(lines, finite, strict=True):
        drawn.append(_line(line, points, borders, place, format_value))
    legend = [
        _legend_entry(line, points, format_value)
        for line, points in zip(lines, finite, strict=True)
        if points
    ]
    svg = element(
        "svg",
        {"viewBox": f"0 0 {width} {HEIGHT}", "role": "img", "aria-label": title},
        *drawn,
    )
    return element(
        "figure",
        {"class": "chart"},
        element(
            "figcaption",
            None,
            element("b", None, title),
            element("span", {"class": "key"}, *legend),
        ),
        svg,
    )


def ticks(top: float, target: int) -> list[float]:
    """Round values from 0 upwards, about `target` steps of 1, 2, 2.5 or 5 times a power of ten.

    The last is the first that reaches `top`.
    """
    raw = top / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def moving_mean(points: Sequence[Point], half: int) -> list[Point]:
    """Each point with the mean of the y values up to `half` places to its either side."""
    means = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, i - half) : i + half + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """The points, or the means of equal runs of them where there are more than `limit`."""
    run = math.ceil(len(points) / limit)
    if run <= 1:
        return list(points)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _axes(
    x_top: float,
    y_ticks: Sequence[float],
    width: int,
    place: Callable[[Point], Point],
    format_tick: Callable[[float], str],
) -> Html:
    parts = []
    for value in y_ticks:
        _, y = place((0, value))
        grid = {
            "class": "grid",
            "x1": LEFT,
            "x2": width - RIGHT,
            "y1": f"{y:.2f}",
            "y2": f"{y:.2f}",
        }
        parts.append(element("line", grid))
        label = {"class": "tick y", "x": LEFT - 7, "y": f"{y + 3.5:.2f}"}
        parts.append(element("text", label, format_tick(value)))
    for value in ticks(x_top, target=5 if width == WIDE else 4):
        if value > x_top * 1.0001:
            continue
        x, _ = place((value, 0))
        label = {"class": "tick x", "x": f"{x:.2f}", "y": HEIGHT - BOTTOM + 15}
        parts.append(element("text", label, figures.short(value)))
    caption = {"class": "axis", "x": (LEFT + width - RIGHT) / 2, "y": HEIGHT - 4}
    parts.append(element("text", caption, "samples seen"))
    return join(parts)


def _marks(marks: Sequence[Mark], x_top: float, place: Callable[[Point], Point]) -> Html:
    parts = []
    for mark in marks:
        x, _ = place((min(mark.x, x_top), 0))
        kind = "resume" if mark.label is None else "switch"
        if mark.label is None or mark.x > 0:
            line = {"class": kind, "x1": f"{x:.2f}", "x2": f"{x:.2f}"}
            tip = [element("title", None, f"resumed at {figures.count(mark.x)} samples")]
            parts.append(
                element(
                    "line",
                    {**line, "y1": TOP - 6, "y2": HEIGHT - BOTTOM},
                    *(tip if mark.label is None else []),
                )
            )
        if mark.label is not None:
            label = {"class": "stage", "x": f"{x + 4:.2f}", "y": TOP - 8}
            parts.append(element("text", label, mark.label))
    return join(parts)


def _line(
    line: Line,
    points: Sequence[Point],
    borders: Sequence[float],
    place: Callable[[Point], Point],
    format_value: Callable[[float], str],
) -> Html:
    """The path of a line; a noisy one as faint points under its moving mean, stage by stage."""
    kind = f"series c{line.colour}"
    kind += " dashed" if line.is_dashed else ""
    kind += " thin" if line.is_thin else ""
    if not line.is_noisy:
        parts = [_path(kind, thinned(points), place)]
    else:
        parts = [_path(kind + " raw", thinned(points), place)]
        for begin, end in zip([-math.inf, *borders], [*borders, math.inf], strict=True):
            part = thinned([point for point in points if begin < point[0] <= end])
            half = max(2, round(len(part) * SMOOTHING_SHARE / 2))
            parts.append(_path(kind, moving_mean(part, half), place))
    if line.has_dots:
        for point in points:
            x, y = place(point)
            tip = f"{line.name}: {format_value(point[1])} at {figures.count(point[0])} samples"
            dot = {"class": f"dot c{line.colour}", "cx": f"{x:.2f}", "cy": f"{y:.2f}", "r": 2.4}
            parts.append(element("circle", dot, element("title", None, tip)))
    return join(parts)


def _path(kind: str, points: Sequence[Point], place: Callable[[Point], Point]) -> Html:
    if not points:
        return Html("")
    spots = " ".join(f"{x:.2f},{y:.2f}" for x, y in map(place, points))
    return element("polyline", {"class": kind, "points": spots})


def _legend_entry(
    line: Line, points: Sequence[Point], format_value: Callable[[float], str]
) -> Html:
    kind = f"swatch c{line.colour}" + (" dashed" if line.is_dashed else "")
    kind += " thin" if line.is_thin else ""
    value = element("b", None, format_value(points[-1][1]))
    return element("span", None, element("i", {"class": kind}), escaped(f" {line.name} "), value)
