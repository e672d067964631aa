"""The report states the run folder's figures, all of them escaped, and survives missing parts."""

import base64
import html
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pretrain.report import figures
from pretrain.report.__main__ import ReportOptions, write_report
from pretrain.report.chart import Line, line_chart, moving_mean, thinned, ticks
from pretrain.report.run_folder import read_run
from pretrain.report.summary import summarize_stages

STAGES = {
    "reduced": {"image_px": 32, "image_tokens": 16, "image_tokens_full": 16, "text_tokens": 8},
    "full": {"image_px": 64, "image_tokens": 64, "image_tokens_full": 64, "text_tokens": 24},
}
STEPS = {"reduced": 1632, "full": 222}
SETS = {"held_out_artist": (1721, 0.206), "held_out_concepts": (190, 0.211)}
BATCH = 256


def set_figures(rng: random.Random, quality: float, name: str) -> dict[str, Any]:
    """One evaluation set's record: figures that rise with quality (0..1)."""
    n, largest = SETS[name]

    def recall() -> dict[str, Any]:
        first = quality * rng.uniform(0.52, 0.6) + 0.002
        record = {"r@1": first, "r@5": min(1, first * 1.45), "r@10": min(1, first * 1.6), "n": n}
        return record | {f"chance_r@{k}": k / n for k in (1, 5, 10)}

    def zero_shot(classes: int, top: float, share: float) -> dict[str, Any]:
        first = top * (0.3 + 0.7 * quality) * rng.uniform(0.97, 1.03)
        shot = {"top1": first, "top5": min(1, first * 1.6), "classes": classes}
        return shot | {"largest_class": share, "n": n}

    return {
        "image_to_text": recall(),
        "text_to_image": recall(),
        "zero_shot": {
            "group": zero_shot(10, 0.58, largest),
            "subgroup": zero_shot(100, 0.41, 0.133),
        },
    }


def all_sets(rng: random.Random, quality: float) -> dict[str, Any]:
    return {
        name: set_figures(rng, quality * (1 if name == "held_out_artist" else 0.33), name)
        for name in SETS
    }


def write_run(
    folder: Path, stages: tuple[str, ...] = ("reduced", "full"), seed: int = 0
) -> dict[str, Any]:
    """Write a plausible finished run, resumed once in its first stage; return its evaluation."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    time, step, samples = 1_795_000_000.0, 0, 0
    start = {"event": "start", "commit": "1a2b3c4", "world_size": 2, "device": "cpu"}
    start |= {"precision": "bf16", "zero_stage": 1, "versions": {"torch": "2.13.0+cpu"}}
    start |= {"parameters": {"image": 840_000, "text": 920_000}}
    events: list[dict[str, Any]] = []
    for stage in stages:
        events.append(start | {"time": time, "samples_seen": samples})
        tokens = STAGES[stage]
        announced = {"event": "stage", "stage": stage, "samples_seen": samples, "step": step}
        events.append(announced | tokens | {"global_batch_samples": BATCH, "steps": STEPS[stage]})
        speed, first, resumed = (2198, step, False) if stage == "reduced" else (709, step, False)
        while step < first + STEPS[stage]:
            advance = min(10, first + STEPS[stage] - step)
            step, samples = step + advance, samples + advance * BATCH
            time += advance * BATCH / speed
            done = (step - first) / STEPS[stage]
            loss = 0.35 + 5.2 * math.exp(-samples / 90_000) * rng.uniform(0.93, 1.07)
            fast = speed * rng.uniform(0.93, 1.04)
            record = {"event": "step", "stage": stage, "step": step, "samples_seen": samples}
            record |= {"loss": loss, "image_to_text_accuracy": math.exp(-loss)}
            record |= {"text_to_image_accuracy": math.exp(-loss * 0.96)}
            record |= {"learning_rate": 8e-3 * (0.5 + 0.5 * math.cos(math.pi * done))}
            record |= {"logit_scale": 14.3 + min(70.0, samples / 7000), "images_per_s": fast}
            record |= {"grad_norm": rng.uniform(0.6, 1.9), "step_s": BATCH / fast}
            record |= {
                "data_wait_s": rng.uniform(0, 0.004),
                "samples_replaced": int(3 * done),
                "time": time,
            }
            events.append(record)
            if (step - first) % 200 == 0:
                quality = 1 - math.exp(-samples / 120_000)
                evaluation = {"event": "evaluation", "stage": stage, "tokens": stage, "step": step}
                evaluation |= {"samples_seen": samples, "sets": all_sets(rng, quality)}
                events.append(evaluation | {"image_px": tokens["image_px"], "text_tokens": 8})
            if step == 800 and not resumed:
                resumed = True
                events.append({"event": "checkpoint", "step": step, "samples_seen": samples})
                lost = {"step": 810, "samples_seen": samples + 2560, "loss": 99.0, "time": time + 1}
                events.append(record | lost)
                time += 3600
                events.append(start | {"time": time, "samples_seen": samples})
    events.append({"event": "end", "time": time + 2, "samples_seen": samples})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")

    results = []
    for after in stages:
        for at in stages:
            if (after, at) == ("full", "reduced"):
                continue
            quality = 0.96 if after == at else 0.4
            result: dict[str, Any] = {
                "after": after,
                "tokens": at,
                "samples_seen": samples,
            } | STAGES[at]
            results.append(result | {"sets": all_sets(rng, quality)})
    evaluation = {**results[-1]["sets"], "stages": results}
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (folder / "recipe.yaml").write_text("seed: 0\nstages:\n- name: reduced\n", encoding="utf-8")
    write_gallery(folder, rng)
    return evaluation


def write_gallery(folder: Path, rng: random.Random) -> None:
    names = ["cat face", "red heart", "flag: Chad", "sailboat", "melting face", "hot beverage"]
    images = []
    for i in range(24):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), tuple(rng.randrange(256) for _ in "rgb")).save(buffer, "JPEG")
        own, top = names[i % 6], rng.sample(names, 5)
        guesses = [
            {"caption": caption, "score": 0.4 - 0.05 * place, "right": caption == own}
            for place, caption in enumerate(top)
        ]
        encoded = base64.b64encode(buffer.getvalue()).decode()
        shot = {"key": f"{i:016x}", "jpeg_base64": encoded, "caption": own, "top5": guesses}
        images.append(shot)
    gallery = {"set": "held_out_artist", "images": images}
    (folder / "gallery.json").write_text(json.dumps(gallery), encoding="utf-8")


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


class Page(HTMLParser):
    """The page's tables as lists of cell texts, its text, and every tag with its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._open.append(tag)
        elif tag == "style":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            return
        if self._open:
            self.tables[-1][-1][-1] += data
        self.texts.append(data.strip())

    def table_with(self, header: str) -> list[list[str]]:
        return next(t for t in self.tables if any(header in cell for row in t for cell in row))


def report(folder: Path, comparison: Path | None = None) -> tuple[str, Page]:
    source = write_report(ReportOptions(run=folder, comparison=comparison)).read_text("utf-8")
    return source, Page(source)


def rates(row: list[str]) -> list[float]:
    """The percentages of a row's cells, after its name, as rates."""
    return [float(cell) / 100 for cell in row[1:] if cell]


def assert_close(shown: list[float], true: list[float]) -> None:
    """Each shown percentage is the true rate to the digits that are shown."""
    assert len(shown) == len(true)
    gaps = [
        abs(a - b) - (0.00051 if b >= 0.01 else 0.051 * b) for a, b in zip(shown, true, strict=True)
    ]
    assert max(gaps) <= 0, f"largest excess {max(gaps)}: {shown} against {true}"


def test_result_tables_hold_the_figures_of_the_file(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    _, page = report(tmp_path / "run")
    tables = [t for t in page.tables if "zero-shot" in " ".join(t[0])]
    assert len(tables) == len(SETS)
    for table, name in zip(tables, SETS, strict=True):
        rows = table[2:]
        assert [row[0].split(" (")[0].strip() for row in rows[-2:]] == ["chance", "largest class"]
        for row, stage in zip(rows, evaluation["stages"], strict=False):
            one = stage["sets"][name]
            true = [
                one[d][f"r@{k}"] for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)
            ]
            true += [
                one["zero_shot"][f][t] for f in ("group", "subgroup") for t in ("top1", "top5")
            ]
            assert_close(rates(row), true)
            assert f"after {stage['after']}, at {stage['tokens']} tokens" in row[0]
        n, largest = SETS[name]
        assert_close(rates(rows[-2]), [k / n for k in (1, 5, 10)] * 2 + [0.1, 0.5, 0.01, 0.05])
        assert_close(rates(rows[-1]), [largest, 0.133])


def test_headline_holds_the_final_figures(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    _, page = report(tmp_path / "run")
    head = page.text.split("Stages")[0]
    for name in SETS:
        for direction in ("image_to_text", "text_to_image"):
            assert f"{100 * evaluation[name][direction]['r@1']:.1f} %" in head
        assert f"{100 * evaluation[name]['zero_shot']['group']['top1']:.1f} %" in head
    assert f"{(1632 + 222) * BATCH:,}" in head


def test_stage_table_holds_what_was_done(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    _, page = report(tmp_path / "run")
    head, *rows = page.table_with("tokens / sample")
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    assert [c["tokens / sample"] for c in cells] == ["24", "88"]
    assert [c["steps"] for c in cells] == ["1,632", "222"]
    assert [c["samples"] for c in cells] == [f"{1632 * BATCH:,}", f"{222 * BATCH:,}"]
    # 1,632 steps at 2,198 images/s, one more second for the step lost to the kill, no pause.
    assert cells[0]["wall time"] == "3 min 11 s"


def test_a_resume_takes_back_what_it_repeats(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert [start["samples_seen"] for start in run.resumes] == [800 * BATCH]
    assert max(step["loss"] for step in run.steps) < 99
    assert [step["step"] for step in run.steps] == sorted({step["step"] for step in run.steps})
    # The second stage counts from 0 again.
    assert run.samples_replaced == 3 + 3
    assert sum(stage.samples for stage in summarize_stages(run)) == run.samples_seen


def test_comparison_states_mean_and_range_over_seeds(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    rows = write_comparison(tmp_path / "c.json")["rows"]
    _, page = report(tmp_path / "run", tmp_path / "c.json")
    table = page.table_with("CNN + bag of words")
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


def test_gallery_marks_right_and_wrong(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    images = json.loads((tmp_path / "run" / "gallery.json").read_text())["images"]
    source, page = report(tmp_path / "run")
    right = sum(guess["right"] for image in images for guess in image["top5"])
    assert source.count("✓") == right
    assert source.count("✗") == 24 * 5 - right
    first = sum(image["top5"][0]["right"] for image in images)
    assert f"Right at first place: {first} of 24" in page.text
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert pictures == [f"data:image/jpeg;base64,{image['jpeg_base64']}" for image in images]


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


def test_all_text_is_escaped(tmp_path: Path) -> None:
    """A tag in any text of the run folder appears as text, never as a tag."""
    evil = "<script>alert('x')</script>\"onload=\""
    write_run(tmp_path / "run")
    write_comparison(tmp_path / "c.json")

    def poisoned(value: Any) -> Any:
        if isinstance(value, str):
            return value + evil
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        if isinstance(value, dict):
            fixed = ("event", "jpeg_base64")
            return {k: v if k in fixed else poisoned(v) for k, v in value.items()}
        return value

    def poisoned_names(sets: Any) -> Any:
        return {name + evil: one for name, one in sets.items()}

    for path in (tmp_path / "run" / "gallery.json", tmp_path / "c.json"):
        path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))
    path = tmp_path / "run" / "evaluation.json"
    evaluation = poisoned(json.loads(path.read_text()))
    evaluation = {name + (evil if name != "stages" else ""): v for name, v in evaluation.items()}
    evaluation["stages"] = [
        stage | {"sets": poisoned_names(stage["sets"])} for stage in evaluation["stages"]
    ]
    path.write_text(json.dumps(evaluation))
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.dumps(poisoned(json.loads(line))) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    (tmp_path / "run" / "recipe.yaml").write_text(f"name: {evil}</pre>")

    source, page = report(tmp_path / "run", tmp_path / "c.json")
    assert "<script" not in source
    assert html.escape(evil, quote=True) in source
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    allowed = "html head meta title style body main h1 h2 h3 p div span b i em small table thead"
    allowed += " tbody tr th td figure figcaption svg line text circle polyline rect img ol li"
    allowed += " details summary pre footer"
    assert {tag for tag, _ in page.tags} <= set(allowed.split())


def test_the_page_asks_for_nothing_outside(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    write_comparison(tmp_path / "c.json")
    source, page = report(tmp_path / "run", tmp_path / "c.json")
    assert not re.search(r"https?://|url\(|@import", source)
    links = [a for _, attributes in page.tags for a in attributes if a in ("href", "srcset")]
    assert not links
    assert "default-src 'none'" in source


@pytest.mark.parametrize(
    "missing", ["recipe.yaml", "metrics.jsonl", "evaluation.json", "gallery.json"]
)
def test_a_missing_file_becomes_a_sentence(tmp_path: Path, missing: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    _, page = report(tmp_path / "run")
    assert missing in page.text
    assert [1 for _, attributes in page.tags if attributes.get("class") == "missing"]


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    _, page = report(tmp_path)
    assert "training has not begun" in page.text


def test_a_single_stage_run_has_a_page(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run", stages=("full",))
    _, page = report(tmp_path / "run")
    assert [row[0] for row in page.table_with("tokens / sample")[1:]] == ["full"]
    assert f"{100 * evaluation['held_out_artist']['image_to_text']['r@1']:.1f} %" in page.text


def test_a_killed_run_has_a_page(tmp_path: Path) -> None:
    """Cut off anywhere, the metrics make a page; a cut line is noted."""
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    for name in ("evaluation.json", "gallery.json"):
        (tmp_path / "run" / name).unlink()
    for share in (0.001, 0.01, 0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        _, page = report(tmp_path / "run")
        assert "could not be read" in page.text
        assert "not finished" in page.text or "No start" in page.text


def test_figures_that_are_no_numbers_become_dashes(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    text = re.sub(r'"(loss|grad_norm|data_wait_s)": [\d.e-]+', r'"\1": NaN', path.read_text())
    path.write_text(re.sub(r'"(images_per_s|learning_rate)": [\d.e-]+', r'"\1": null', text))
    source, _ = report(tmp_path / "run")
    assert "nan" not in re.sub(r'base64,[^"]*', "", source).lower()
    values = (None, "3", True, math.nan, math.inf)
    for write in (figures.percent, figures.count, figures.decimal, figures.duration):
        assert [write(value) for value in values] == [figures.MISSING] * len(values)


def test_figures_read_well() -> None:
    rates = {0.528: "52.8 %", 0.0: "0.0 %", 0.0053: "0.53 %", 0.000581: "0.058 %", 1: "100.0 %"}
    assert {rate: figures.percent(rate) for rate in rates} == rates
    spans = {4.21: "4.2 s", 274.1: "4 min 34 s", 7500: "2 h 05 min", 3599.7: "1 h 00 min"}
    assert {span: figures.duration(span) for span in spans} == spans
    values = {0.0: "0", 5.5452: "5.55", 0.008: "0.00800", 84.31: "84.3", 1e-9: "1.00e-09"}
    assert {value: figures.decimal(value) for value in values} == values


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--run"):
        write_report(ReportOptions(run=tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"none\.json.*--comparison"):
        write_report(ReportOptions(run=tmp_path, comparison=tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"bad\.json.*rows"):
        write_report(ReportOptions(run=tmp_path, comparison=tmp_path / "bad.json"))
