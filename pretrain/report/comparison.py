"""The comparison section: the run beside other trainings of the same budget."""

import json
from collections.abc import Callable
from pathlib import Path

from pretrain.report import figures
from pretrain.report.markup import Html, element, join, paragraph, table
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import (
    DIRECTIONS,
    Spread,
    final_sets,
    group_comparison,
    objects,
    set_names,
    spread,
    training_s,
)

THIS_RUN = "this run"

WIDTH, NAME_WIDTH, LABEL_WIDTH = 560, 172, 58
BAR, GAP, ROW_GAP, TOP = 12, 2, 13, 6


def read_comparison(path: Path) -> Record:
    """A comparison file. FileNotFoundError or ValueError name the file and the remedy."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no comparison file {path}: leave --comparison out, or write one with "
            f"`python -m benchmarks.cnn_baseline --out {path}`"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"comparison file {path} is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list):
        raise ValueError(f"comparison file {path} has no list `rows`: it was not written by us")
    return value


def comparison_section(run: Run, comparison: Record | None) -> Html:
    """Table and bars of the comparison rows, by name over seeds, the run itself first."""
    title = element("h2", None, "Comparison")
    if comparison is None:
        return join(
            [
                title,
                paragraph("No comparison file was given (--comparison FILE).", kind="missing"),
            ]
        )
    groups = {**_own_row(run), **group_comparison(comparison["rows"])}
    names = set_names(objects(row.get("sets")) for rows in groups.values() for row in rows)
    if not names:
        return join([title, paragraph("The comparison file holds no rows yet.", kind="missing")])
    budget = comparison.get("seconds_budget")
    note = "R@1 in percent, mean over seeds, with least and greatest where there are several. "
    if budget is not None:
        note += f"Every row was given {figures.duration(budget)} of training. "
    note += f"“{THIS_RUN}” is this folder's own result: one seed, with its own time. "
    note += "Seconds are those of training steps, without evaluation."
    bars = [_bar_chart(name, groups) for name in names]
    return join(
        [
            title,
            paragraph(note, kind="note"),
            _table(groups, names),
            element("div", {"class": "charts"}, *bars),
        ]
    )


def _own_row(run: Run) -> dict[str, list[Record]]:
    sets = final_sets(run)
    if not sets:
        return {}
    seconds = training_s(run)
    row = {"sets": sets, "samples": run.samples_seen, "seconds": seconds}
    if seconds is not None:
        row["images_per_s"] = run.samples_seen / seconds
    return {THIS_RUN: [row]}


def _table(groups: dict[str, list[Record]], names: list[str]) -> Html:
    spans: list[object] = [("", 5), *((figures.readable(name), 2) for name in names)]
    head: list[object] = ["", "seeds", "seconds", "samples", "images/s"]
    head += [label for _ in names for _, label in DIRECTIONS]
    body = []
    for group, rows in groups.items():
        cells: list[object] = [group, figures.count(len(rows))]
        for field, write in (("seconds", figures.decimal), ("samples", figures.count)):
            mean = spread(row.get(field) for row in rows)
            cells.append(write(mean.mean) if mean else figures.MISSING)
        speed = spread(row.get("images_per_s") for row in rows)
        cells.append(figures.count(speed.mean) if speed else figures.MISSING)
        for name in names:
            for direction, _ in DIRECTIONS:
                cells.append(_spread_cell(_rates(rows, name, direction)))
        body.append(cells)
    chance: list[object] = ["chance", "", "", "", ""]
    for name in names:
        for direction, _ in DIRECTIONS:
            known = [_rates(rows, name, direction, "chance_r@1") for rows in groups.values()]
            first = next((rate for rate in known if rate is not None), None)
            chance.append(figures.MISSING if first is None else figures.points(first.mean))
    body.append(chance)
    kinds = ["final" if group == THIS_RUN else "" for group in groups] + ["chance"]
    return table([spans, head], body, kinds)


def _rates(rows: list[Record], name: str, direction: str, field: str = "r@1") -> Spread | None:
    sets = [objects(objects(row.get("sets")).get(name)) for row in rows]
    return spread(one.get(direction, {}).get(field) for one in sets)


def _spread_cell(recall: Spread | None) -> object:
    if recall is None:
        return figures.MISSING
    mean = figures.points(recall.mean)
    if len(recall.values) == 1:
        return mean
    low, high = figures.points(min(recall.values)), figures.points(max(recall.values))
    return join([mean, " ", element("small", {"class": "under"}, f"{low} to {high}")])


def _bar_chart(name: str, groups: dict[str, list[Record]]) -> Html:
    """Two bars a group, with a whisker from the least to the greatest seed and a dot a seed."""
    recalls = [
        [_rates(rows, name, direction) for direction, _ in DIRECTIONS] for rows in groups.values()
    ]
    top = max((max(r.values) for pair in recalls for r in pair if r is not None), default=0) or 1.0
    row_height = len(DIRECTIONS) * (BAR + GAP) + ROW_GAP
    height = TOP + len(groups) * row_height

    def along(rate: float) -> float:
        return NAME_WIDTH + (WIDTH - NAME_WIDTH - LABEL_WIDTH) * rate / top

    parts: list[Html] = []
    for i, (group, pair) in enumerate(zip(groups, recalls, strict=True)):
        y = TOP + i * row_height
        label = {"class": "name", "x": 4, "y": y + BAR + GAP + 3}
        parts.append(element("text", label, group))
        for j, recall in enumerate(pair):
            if recall is not None:
                parts.append(_bar(recall, j, y + j * (BAR + GAP), along))
    swatches = [
        element("span", None, element("i", {"class": f"swatch block c{j}"}), f" {label}")
        for j, (_, label) in enumerate(DIRECTIONS, start=1)
    ]
    return element(
        "figure",
        {"class": "chart"},
        element(
            "figcaption",
            None,
            element("b", None, f"R@1, {figures.readable(name)}"),
            element("span", {"class": "key"}, *swatches),
        ),
        element("svg", {"viewBox": f"0 0 {WIDTH} {height}", "role": "img"}, *parts),
    )


def _bar(recall: Spread, place: int, y: float, along: Callable[[float], float]) -> Html:
    begin, end = along(0.0), along(recall.mean)
    low, high = along(min(recall.values)), along(max(recall.values))
    middle = y + BAR / 2
    box = {"x": f"{begin:.1f}", "y": y, "width": f"{end - begin:.1f}", "height": BAR, "rx": 2}
    parts = [element("rect", {"class": f"bar c{place + 1}", **box})]
    if len(recall.values) > 1:
        whisker = {"x1": f"{low:.1f}", "x2": f"{high:.1f}", "y1": middle, "y2": middle}
        parts.append(element("line", {"class": "whisker", **whisker}))
        for value in recall.values:
            dot = {"class": "seed", "cx": f"{along(value):.1f}", "cy": middle, "r": 2.6}
            parts.append(element("circle", dot))
    text = {"class": "figure", "x": f"{max(end, high) + 6:.1f}", "y": middle + 4}
    parts.append(element("text", text, figures.percent(recall.mean)))
    return join(parts)
