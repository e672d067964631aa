"""The page of a comparison states its rows: means, ranges, and bars as long as the rates."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from report_run import SETS, Page, all_sets, assert_close, write_run

from benchmarks.comparison_page import write_comparison_page
from pretrain.report.run_folder import read_run

# Benchmarks are no part of the product: `make soak` runs what measures with them.
pytestmark = pytest.mark.soak


def write_comparison(path: Path, seeds: int = 3) -> dict[str, Any]:
    rng = random.Random(1)
    rows = []
    for name, quality, speed in (
        ("two-stage CLIPA", 0.96, 1715),
        ("full tokens from scratch", 0.72, 734),
        ("CNN + bag of words", 1.13, 4508),
    ):
        for seed in range(seeds):
            row = {"name": name, "seed": seed, "seconds": 270.0 + seed, "samples": speed * 270}
            row |= {"images_per_s": speed, "sets": all_sets(rng, quality * rng.uniform(0.96, 1.04))}
            rows.append(row)
    comparison = {"seconds_budget": 270, "rows": rows}
    path.write_text(json.dumps(comparison), encoding="utf-8")
    return comparison


def compared(folder: Path) -> tuple[str, Page]:
    source = write_comparison_page(folder / "run", folder / "c.json").read_text("utf-8")
    return source, Page(source)


def test_comparison_states_mean_and_range_over_seeds(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    rows = write_comparison(tmp_path / "c.json")["rows"]
    _, page = compared(tmp_path)
    table = page.table_with("CNN + bag of words")
    steps = read_run(tmp_path / "run").steps
    before = [0, *(step["step"] for step in steps)]
    seconds = sum(s["step_s"] * (s["step"] - b) for s, b in zip(steps, before, strict=False))
    assert next(row for row in table if row[0] == "this run")[2] == f"{seconds:.0f}"
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = next(row for row in table if row[0] == name)
        assert cells[1] == "3"
        shown, true = [], []
        for cell in cells[5:]:
            shown += [float(part) / 100 for part in re.findall(r"[\d.]+", cell)]
        for held_out in SETS:
            for d in ("image_to_text", "text_to_image"):
                of = [r["sets"][held_out][d]["r@1"] for r in rows if r["name"] == name]
                true += [sum(of) / len(of), min(of), max(of)]
        assert_close(shown, true)


def test_bars_are_as_long_as_their_rates(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    rows = write_comparison(tmp_path / "c.json", seeds=1)["rows"]
    source, page = compared(tmp_path)
    assert not [cell for row in page.table_with("CNN") for cell in row if " to " in cell]
    charts = re.findall(r"<figure.*?</figure>", source, re.DOTALL)
    chart = next(c for c in charts if "R@1 compared, held out concepts" in c)
    bars = re.findall(r"<title>([^<]*): [\d.]+ %</title>\s*<path d=\"M ([^\"]*)\"", chart)
    names = [(row["name"], way) for row in rows for way in ("image → text", "text → image")]
    assert [bar[0] for bar in bars][2:] == [f"{name}, {way}" for name, way in names]
    xs = [[float(corner.split()[0]) for corner in re.split("[ML]", d)] for _, d in bars[2:]]
    assert len({min(x) for x in xs}) == 1, "bars begin at one line"
    widths = [max(x) - min(x) for x in xs]
    true = [
        row["sets"]["held_out_concepts"][direction]["r@1"]
        for row in rows
        for direction in ("image_to_text", "text_to_image")
    ]
    scale = widths[0] / true[0]
    gap = max(abs(w - scale * t) for w, t in zip(widths, true, strict=True))
    assert gap < 0.01 and max(widths) > 250, f"largest gap {gap} px of {widths}"
