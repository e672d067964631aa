"""The report escapes all text, asks for nothing outside and survives missing or broken parts."""

import html
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judged import looked_up
from markupsafe import escape
from report_run import report, write_run

from pretrain.report import figures
from pretrain.report.command import write_report
from pretrain.report.options import ReportOptions

ROOT = Path(__file__).resolve().parents[2]


def test_all_text_is_escaped(tmp_path: Path) -> None:
    """A tag in any text of the run folder appears as text, never as a tag."""
    evil = "<script>alert('x')</script>\"onload=\"{{ 7 * 7 }}$\\x$"
    run = tmp_path / "a <b>run"
    write_run(run)

    def poisoned(value: Any) -> Any:
        if isinstance(value, str):
            return value + evil
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        if isinstance(value, dict):
            fixed = ("event", "jpeg_base64")
            return {k: v if k in fixed else poisoned(v) for k, v in value.items()}
        return value

    for path in (run / "gallery.json", run / "evaluation.json"):
        path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))
    path = run / "metrics.jsonl"
    lines = [json.dumps(poisoned(json.loads(line))) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    (run / "recipe.yaml").write_text(f"name: {evil}</pre>")

    source, page = report(run)
    assert "<script" not in source and "<b>run" not in source
    assert escape(evil) in source and html.unescape(escape(evil)) == evil
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    allowed = "html head meta title style body main h1 h2 h3 p div span b i em small table thead"
    allowed += " tbody tr th td figure figcaption svg g defs use path text img ol li"
    allowed += " details summary pre footer"
    assert {tag for tag, _ in page.tags} <= set(allowed.split())


def test_the_page_asks_for_nothing_outside(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    source, page = report(tmp_path / "run")
    assert not re.search(r"https?://|url\(|@import", source)
    for _, attributes in page.tags:
        assert "srcset" not in attributes and (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "script" not in {tag for tag, _ in page.tags}
    assert "default-src 'none'" in source


@pytest.mark.parametrize(
    ("missing", "sections"),
    [
        ("recipe.yaml", {"Recipe"}),
        ("metrics.jsonl", {"Stages", "Curves"}),
        ("evaluation.json", {"Abilities"}),  # the metrics have the results
        ("gallery.json", {"Gallery"}),
    ],
)
def test_a_section_without_content_is_not_there(tmp_path, missing, sections) -> None:
    write_run(tmp_path / "run")
    whole = headings(report(tmp_path / "run")[0])
    assert sections <= {*whole}
    (tmp_path / "run" / missing).unlink()
    source, _ = report(tmp_path / "run")
    assert headings(source) == [name for name in whole if name not in sections]
    assert 'class="missing"' not in source


def headings(source: str) -> list[str]:
    return re.findall("<h2>(.+?)</h2>", source)


def test_a_finished_run_without_an_evaluation_gives_the_command_for_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    (run / "evaluation.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in lines if json.loads(line)["event"] not in ("evaluation", "end")]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "Results" not in headings(report(run)[0])  # there are no weights to judge yet
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "end", "samples_seen": 10**9, "step": 10**6}) + "\n")
    _, page = report(run)
    assert f"python -m pretrain.evaluate --run_dir {run} --sets.held_out DATASET" in page.text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    command = [sys.executable, "-m", "pretrain.report", "--run_dir", tmp_path / "run"]
    pages = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        pages.append((tmp_path / "run" / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    command = [sys.executable, "-m", "pretrain.report", "--run_dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    for named in (str(tmp_path), "metrics.jsonl", "recipe.yaml", "--run"):
        assert named in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    _, page = report(tmp_path)
    assert "training has not begun" in page.text


def test_the_report_stands_alone() -> None:
    """It loads no torch, and nothing of the package builds on it but the search page, which wears
    the same clothes."""
    code = "import sys, pretrain.report.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    for path in (ROOT / "pretrain").rglob("*.py"):
        if {"report", "search"}.isdisjoint(path.relative_to(ROOT).parts):
            assert "pretrain.report" not in path.read_text(), path


def test_a_single_stage_run_has_a_page(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run", stages=("full",))
    _, page = report(tmp_path / "run")
    assert [row[0] for row in page.table_with("tokens / sample")[1:]] == ["full"]
    found = looked_up(evaluation["points"][-1]["figures"], "retrieval")["held_out_artist"]
    assert f"{100 * found['image_to_text']['r@1']:.1f} %" in page.text


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


WRONG = ["9" * 4000, "1e999", '"12"', "null", "[]", "{}", "[1, {}]", "true", "-7", "[" * 99_999]


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.soak)])
def test_values_of_the_wrong_kind_anywhere_leave_a_page(every: int, tmp_path: Path) -> None:
    """Each field of each event in turn, then whole files; of the fields every so many."""
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for name in sorted({name for line in lines for name in json.loads(line)})[::every]:
        spoiled = []
        for place, line in enumerate(lines):
            event = {**json.loads(line)}
            if name in event:
                event[name] = "SPOILED"
            spoiled.append(json.dumps(event).replace('"SPOILED"', WRONG[place % len(WRONG)]))
        path.write_text("\n".join(spoiled))
        report(tmp_path / "run")
    path.write_text("\n".join(lines))
    for value in WRONG[:: 1 if every == 1 else 3]:
        for name in ("evaluation.json", "gallery.json"):
            (tmp_path / "run" / name).write_text(value)
        report(tmp_path / "run")


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


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--run"):
        write_report([], ReportOptions(run_dir=tmp_path / "nowhere"))
