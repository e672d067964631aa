"""A chart and a number can be read back to what was drawn and written."""

import math
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from report_run import report, write_run

from pretrain.report import figures
from pretrain.report.chart import (
    LEFT,
    NARROW,
    RIGHT,
    WIDE,
    Chart,
    Line,
    Mark,
    line_chart,
    moving_mean,
    row_widths,
)
from pretrain.report.page import __file__ as page_file


def drawn(chart: Chart | None) -> ElementTree.Element:
    assert chart is not None
    return ElementTree.fromstring(f"<svg>{chart.drawing}</svg>")


def lines_named(svg: ElementTree.Element, name: str) -> list[list[tuple[float, float]]]:
    """The vertices of each unbroken stroke of the line that calls itself so."""
    group = next(g for g in svg.iter("g") if g.findtext("title") == name)
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", stroke)]
        for path in group.iter("path")
        for stroke in path.get("d", "").split("M")[1:]
    ]


def test_a_chart_can_be_read_back() -> None:
    points = [(i * 1000.0, 0.37 + math.sin(i / 9) ** 2 * 61) for i in range(200)]
    chart = line_chart("Loss", [Line(name="contrastive", points=points)])
    svg = drawn(chart)
    xs, ys = [], []
    for text in svg.iter("text"):
        if text.text and text.text.endswith("k"):
            xs.append((float(text.get("x", "")), 1000 * float(text.text[:-1])))
    for tick in svg.iter("g"):  # a grid line with its label
        if len(tick) == 2 and tick[0].find("path") is not None and tick[1].find("text") is not None:
            line, label = tick[0].find("path"), tick[1].find("text")
            ys.append((float(line.get("d").split()[2]), float(label.text)))
    assert len(xs) >= 3 and len(ys) >= 4

    def value(place: float, scale: list[tuple[float, float]]) -> float:
        (p0, v0), (p1, v1) = scale[0], scale[-1]
        return v0 + (place - p0) * (v1 - v0) / (p1 - p0)

    (stroke,) = lines_named(svg, "contrastive")
    read = [(value(x, xs), value(y, ys)) for x, y in stroke]
    # A vertex that lies on the straight between others may be left out.
    back = np.interp([x for x, _ in points], [x for x, _ in read], [y for _, y in read])
    gap = max(abs(a - y) for a, (_, y) in zip(back, points, strict=True))
    pixel = abs(value(1, ys) - value(0, ys))
    assert gap < pixel, f"largest gap {gap}, a pixel is {pixel}"
    assert chart is not None and chart.keys[0].value == figures.decimal(points[-1][1])


def test_a_gap_in_the_data_does_not_break_the_line() -> None:
    points = [(float(x), math.nan if 3 <= x <= 5 else 1.0 + x % 2) for x in range(10)]
    (stroke,) = lines_named(drawn(line_chart("Loss", [Line(name="a", points=points)])), "a")
    assert len(stroke) == 7
    assert line_chart("Loss", [Line(name="a", points=[(0.0, math.nan)])]) is None


def test_names_from_the_run_folder_are_drawn_as_they_are() -> None:
    for name in ("$x_1$", "a <b>&", "新しい", "x" * 500, "a\x00\ud800\nb"):
        marks = [Mark(x=0, label="first"), Mark(x=0.2, label=name)]
        svg = drawn(line_chart("Loss", [Line(name="a", points=[(0, 1), (1, 2)])], marks))
        texts = [text.text or "" for text in svg.iter("text")]
        shown = "a   b" if "\x00" in name else name[:23]
        assert any(text.startswith(shown) for text in texts), (name, texts)


def test_charts_follow_the_page_in_light_and_in_dark(tmp_path: Path) -> None:
    """No chart has a colour or a font of its own; each of its colours has both values."""
    write_run(tmp_path / "run")
    source, page = report(tmp_path / "run")
    charts = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(charts) == 17
    used = set()
    for chart in charts:
        styles = "; ".join(re.findall(r'style="([^"]*)"', chart))
        assert not re.search(r"#|rgb|font-(family|size)", styles), styles
        assert not re.search(r' (fill|stroke)="', chart)
        for text in re.findall(r"<text[^>]*>", chart):
            assert "fill: var(" in text, f"black by default: {text}"
        used |= set(re.findall(r"(?:fill|stroke): ([^;\"]+)", styles)) - {"none"}
    assert all(re.fullmatch(r"var\(--\w+\)", colour) for colour in used), used
    assert {"var(--c1)", "var(--c2)", "var(--soft)", "var(--ink)"} <= used
    css = Path(page_file).with_name("page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    for colour in used:
        assert f"{colour[4:-1]}: #" in light and f"{colour[4:-1]}: #" in dark, colour

    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert ids and len(ids) == len(set(ids)), "ids are unique on the page"
    targets = {attributes["href"] for _, attributes in page.tags if "href" in attributes}
    assert targets <= {f"#{name}" for name in ids}


def test_a_long_line_is_drawn_to_its_ends_in_few_points() -> None:
    points = [(float(i), 2 + math.sin(i * i)) for i in range(100_000)]
    (stroke,) = lines_named(drawn(line_chart("Loss", [Line(name="a", points=points)])), "a")
    assert len(stroke) < 12_000, len(stroke)
    begin, end = stroke[0][0], stroke[-1][0]
    gap = max(abs(begin - LEFT), abs(end - (WIDE - RIGHT)))
    assert gap < 0.1, f"{gap} px short of the chart's left or right"


def test_moving_mean_is_that_of_the_window() -> None:
    rng = random.Random(0)
    for length, half in ((1, 3), (2, 3), (50, 2), (50, 9)):
        values = [rng.random() for _ in range(length)]
        windows = [values[max(0, i - half) : i + half + 1] for i in range(length)]
        true = [sum(window) / len(window) for window in windows]
        gap = max(abs(a - b) for a, b in zip(moving_mean(values, half), true, strict=True))
        assert gap < 1e-12, gap


def test_figures_read_well() -> None:
    rates = {0.528: "52.8 %", 0.0: "0.0 %", 0.0053: "0.53 %", 0.000581: "0.058 %", 1: "100.0 %"}
    assert {rate: figures.percent(rate) for rate in rates} == rates
    spans = {4.21: "4.2 s", 274.1: "4 min 34 s", 7500: "2 h 05 min", 3599.7: "1 h 00 min"}
    assert {span: figures.duration(span) for span in spans} == spans
    values = {0.0: "0", 5.5452: "5.55", 0.008: "0.00800", 84.31: "84.3", 1e-9: "1·10⁻⁹"}
    assert {value: figures.decimal(value) for value in values} == values
    ticks = {8e-5: "8·10⁻⁵", 2.5e-4: "2.5·10⁻⁴", 0.002: "0.002", 50_000.0: "50k"}
    assert {value: figures.short(value) for value in ticks} == ticks
    spans = {0.0: "0 s", 0.0853: "85.3 ms", 0.25: "250 ms", 3.0: "3 s"}
    assert {value: figures.short_span(value) for value in spans} == spans


def test_no_row_of_charts_has_a_gap() -> None:
    for wide in range(6):
        for count in range(wide + 6, 30):
            widths = row_widths(count, wide)
            pairs = widths.count(WIDE)
            assert widths == [WIDE] * pairs + [NARROW] * (count - pairs) and pairs >= wide
            assert pairs % 2 == 0 and (count - pairs) % 3 == 0, (count, wide)


def test_a_time_axis_has_its_unit(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    source, _ = report(tmp_path / "run")
    for title in ("Step time", "Time to features, by rank"):
        chart = source.split(f'aria-label="{title}"')[1].split("</svg>")[0]
        assert re.search(r">\d+ ms</text>", chart) and ">0 s</text>" in chart, title
