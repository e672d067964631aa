"""A chart and a number can be read back to what was drawn and written."""

import math
import re

from pretrain.report import figures
from pretrain.report.chart import Line, line_chart, moving_mean, thinned, ticks


def test_a_chart_can_be_read_back() -> None:
    points = [(i * 1000.0, 0.37 + math.sin(i / 9) ** 2 * 61) for i in range(200)]
    chart = line_chart("loss", [Line(name="loss", points=points)])
    labels = re.findall(r'class="tick (x|y)" x="([-\d.]+)" y="([-\d.]+)">([\d.]+)(k?)<', chart)
    xs = [(float(x), float(v) * (1000 if k else 1)) for axis, x, _, v, k in labels if axis == "x"]
    ys = [(float(y) - 3.5, float(v)) for axis, _, y, v, _ in labels if axis == "y"]
    path = re.search(r'<polyline class="series c1" points="([^"]*)"', chart)
    assert path
    drawn = [tuple(map(float, spot.split(","))) for spot in path[1].split()]

    def value(place: float, scale: list[tuple[float, float]]) -> float:
        (p0, v0), (p1, v1) = scale[0], scale[-1]
        return v0 + (place - p0) * (v1 - v0) / (p1 - p0)

    gap_x = max(abs(value(x, xs) - p[0]) for (x, _), p in zip(drawn, points, strict=True))
    gap_y = max(abs(value(y, ys) - p[1]) for (_, y), p in zip(drawn, points, strict=True))
    assert gap_x < 10 and gap_y < 0.01, f"largest gaps {gap_x} samples, {gap_y}"
    assert figures.decimal(points[-1][1]) in chart


def test_ticks_are_round_and_reach_the_top() -> None:
    for top in (1e-7, 0.008, 0.37, 1.0, 5.6, 99.0, 2198.0, 3e9):
        values = ticks(top, target=4)
        assert values[0] == 0 and values[-1] >= top * 0.999 and 3 <= len(values) <= 8, (top, values)


def test_long_lines_are_thinned_without_changing_their_mean() -> None:
    points = [(float(i), math.sin(i)) for i in range(8000)]
    thin = thinned(points, limit=800)
    assert len(thin) == 800
    gap = abs(sum(y for _, y in thin) / 800 - sum(y for _, y in points) / 8000)
    assert gap < 1e-12, gap
    assert moving_mean([(0, 1.0), (1, 2.0), (2, 6.0)], half=1) == [(0, 1.5), (1, 3.0), (2, 4.0)]


def test_figures_read_well() -> None:
    rates = {0.528: "52.8 %", 0.0: "0.0 %", 0.0053: "0.53 %", 0.000581: "0.058 %", 1: "100.0 %"}
    assert {rate: figures.percent(rate) for rate in rates} == rates
    spans = {4.21: "4.2 s", 274.1: "4 min 34 s", 7500: "2 h 05 min", 3599.7: "1 h 00 min"}
    assert {span: figures.duration(span) for span in spans} == spans
    values = {0.0: "0", 5.5452: "5.55", 0.008: "0.00800", 84.31: "84.3", 1e-9: "1.00e-09"}
    assert {value: figures.decimal(value) for value in values} == values
