"""Several runs on one page: own figures, own lines, and what the recipes differ in."""

import re
from pathlib import Path

import pytest
from judged import looked_up
from report_run import SETS, Page, assert_close, write_run

from pretrain.report import figures
from pretrain.report.__main__ import main
from pretrain.report.command import write_report
from pretrain.report.options import ReportOptions
from pretrain.report.run_folder import read_run

RECIPE = """run_dir: {run_dir}
seed: {seed}
optimizer: {{kind: adamw, eps: 1.0e-6}}
stages:
  reduced: {{steps: 1632, locked: {locked}}}
"""


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "a/run", tmp_path / "b/run", tmp_path / "sparse"]
    for seed, folder in enumerate(folders):
        locked = "image" if seed == 1 else "null"
        recipe = RECIPE.format(run_dir=folder, seed=seed // 2, locked=locked)
        write_run(folder, seed=seed, is_sparse=folder.name == "sparse", recipe=recipe)
    return folders


def test_runs_stand_beside_one_another(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    main([*map(str, runs), "--out", str(out)])
    source = out.read_text("utf-8")
    page = Page(source)
    names = ["a/run", "b/run", "sparse"]
    head, *rows = page.table_with("training time")
    assert [row[0].strip() for row in rows] == names
    for row, folder in zip(rows, runs, strict=True):
        run = read_run(folder)
        cells = dict(zip(head, row, strict=True))
        assert cells["samples"] == figures.count(run.samples_seen)
        assert cells["loss"] == figures.decimal(run.steps[-1]["loss"])
    tables = [table for table in page.tables if "zero-shot group top-1" in table[0]]
    for table, name in zip(tables, SETS, strict=True):
        for row, run_name, folder in zip(table[1:], names, runs, strict=True):
            last = read_run(folder).evaluation["points"][-1]["figures"]
            one, shots = (looked_up(last, task)[name] for task in ("retrieval", "zero-shot"))
            true = [one[d]["r@1"] for d in ("image_to_text", "text_to_image")]
            true += [shots[field]["top1"] for field in ("group", "subgroup")]
            assert row[0] == run_name
            assert_close([float(cell) / 100 for cell in row[1:]], true)
    assert page.table_with("option") == [
        ["option", *names],
        ["seed", "0", "0", "1"],
        ["stages.reduced.locked", "null", "image", "null"],
    ]
    assert "http:" not in source and "https:" not in source  # nothing is fetched


def test_every_chart_has_a_line_of_each_run_that_logged_it(
    runs: list[Path], tmp_path: Path
) -> None:
    source = write_report(runs, ReportOptions(out=tmp_path / "page.html")).read_text("utf-8")
    legends = {}
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", source, re.DOTALL):
        title, *values = re.findall(r"<b>(.*?)</b>", caption)
        legends[title] = values
    last = [read_run(folder).steps[-1] for folder in runs]
    assert legends["Loss"] == [figures.decimal(step["loss"]) for step in last]
    assert legends["Images per second"] == [figures.count(step["images_per_s"]) for step in last]
    assert legends["Tokens per second"] == [
        figures.count(step["tokens_per_s"])
        for step in last[:2]  # the sparse run has none
    ]
    host = [figures.decimal(step["host_memory_gib"]) for step in last[:2]]
    assert legends["Memory of a rank, GiB, host"] == host  # no device among them
    assert len([title for title in legends if "R@1" in title]) == 2 * len(SETS)


def test_alike_recipes_and_what_cannot_be_compared(
    runs: list[Path], tmp_path: Path, capsys
) -> None:
    (runs[1] / "recipe.yaml").write_text((runs[0] / "recipe.yaml").read_text())
    (runs[2] / "recipe.yaml").write_text("stages: [\n")
    out = str(tmp_path / "page.html")
    main([str(runs[0]), str(runs[1]), "--out", out])
    assert "In no option but the run folder." in Path(out).read_text()
    main([str(runs[0]), str(runs[2]), "--out", out])
    assert "recipe.yaml of sparse could not be read" in Path(out).read_text()
    main([str(runs[0])])
    capsys.readouterr()
    assert (runs[0] / "report.html").is_file()
    for words, named in (
        ([str(runs[0]), str(runs[1])], "--out"),
        ([], "give RUN"),
        ([str(runs[0])] * 9 + ["--out", out], "up to 8"),
        ([str(tmp_path), str(runs[0]), "--out", out], "no run in"),
        ([str(runs[0]), "--outt", out], "outt"),
    ):
        assert main(words) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and named in errors[0], errors
