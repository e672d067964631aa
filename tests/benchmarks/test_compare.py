"""A comparison of equal time: a killed one goes on, a finished run is taken over, none is mixed."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tiny_runs import ROOT

from benchmarks.compare import (
    CNN,
    CONTROL,
    TWO_STAGE,
    CompareOptions,
    Comparison,
    compare,
    put_two_stage,
    taken_over,
)
from benchmarks.comparison_table import verdict
from pretrain.recipe.parsing import parse

# Benchmarks are no part of the product: `make soak` runs what measures with them.
pytestmark = pytest.mark.soak

TIMEOUT_S = 240
METRICS = "metrics.jsonl"


@pytest.fixture(scope="module")
def options(
    tiny_dataset: Path, tiny_evaluation_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> CompareOptions:
    """The tiny recipe at a length of seconds, and its control."""
    folder = tmp_path_factory.mktemp("compare")
    tiny = yaml.safe_load((ROOT / "pretrain/recipes/tiny.yaml").read_text())
    tiny["data"]["train"] = str(tiny_dataset)
    tiny["evaluation"] = {"sets": {"held_out": str(tiny_evaluation_set)}}
    tiny["stages"]["reduced"]["steps"] = 75
    tiny["stages"]["full"]["steps"] = 25
    full = tiny["stages"]["full"] | {"warmup_steps": None, "warmup_share": 0.1}
    control = {"stages": {"reduced": None, "full": full}, "checkpoint": {"every_steps": 10}}
    for name, recipe in (("recipe", tiny), ("control", control)):
        text = yaml.safe_dump(recipe, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text)
    return CompareOptions(
        out=folder / "rows.json",
        ranks=1,
        recipe=folder / "recipe.yaml",
        control=folder / "control.yaml",
        finished_run=folder / "none",
        runs=folder / "runs",
    )


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind in a run's log, without a line that is still being written."""
    path = run / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"]


@pytest.fixture(scope="module")
def first_rows(options: CompareOptions) -> list[dict[str, Any]]:
    """Rows of a comparison that is ended half-way through its second training."""
    names = ("out", "ranks", "recipe", "control", "finished_run", "runs")
    words = [f"--{name}={getattr(options, name)}" for name in names]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.compare", *words], cwd=ROOT)
    family = [psutil.Process(process.pid)]
    try:
        deadline = time.monotonic() + TIMEOUT_S
        # Its first checkpoint, of step 10, is whole when the next step is logged.
        while len(events(options.runs / "full_tokens_0", "step")) <= 10:
            assert process.poll() is None, "ended before the second training had a checkpoint"
            assert time.monotonic() < deadline, "no checkpoint of the second training"
            time.sleep(0.02)
        family += family[0].children(recursive=True)
        assert len(family) > 1
        process.terminate()
        assert process.wait(TIMEOUT_S) != 0
        alive = psutil.wait_procs(family[1:], timeout=20)[1]
        assert not alive, f"left training: {alive}"
    finally:
        for member in family:
            if member.is_running():
                member.kill()
    assert not events(options.runs / "full_tokens_0", "end"), "ended too late to show anything"
    return rows_of(options.out)


@pytest.mark.soak
def test_a_killed_comparison_goes_on_to_rows_of_equal_time(options, first_rows, capfd):
    assert [row["name"] for row in first_rows] == [TWO_STAGE]
    compare(options)
    rows = rows_of(options.out)
    assert rows[0] == first_rows[0]
    assert [(row["name"], row["seed"]) for row in rows] == [(TWO_STAGE, 0), (CONTROL, 0), (CNN, 0)]

    two_stage = events(options.runs / "two_stage_0", "step")
    assert len(two_stage) == 100
    budget = json.loads(options.out.read_text())["seconds_budget"]
    assert budget == pytest.approx(sum(step["step_s"] for step in two_stage), abs=0.05)
    for row in rows:
        assert row["seconds_budget"] == budget
        assert row["machine"]["ranks"] == 1 and row["machine"]["cpu"] and row["machine"]["cores"]
        assert row["commit"] and row["date"].startswith("20")
        assert set(row["sets"]) == {"held_out"}

    # The control went on where it was, and each of its steps counts once.
    control = options.runs / "full_tokens_0"
    begun = [event["samples_seen"] for event in events(control, "start")]
    assert len(begun) == 2 and begun[1] > 0
    probed = [step["step_s"] for step in events(options.runs / "probe_0", "step")]
    steps = events(control, "step")
    assert len(probed) == 25
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == round(budget / statistics.mean(probed[5:]))
    assert rows[1]["seconds"] == pytest.approx(sum(step["step_s"] for step in steps))
    assert rows[1]["samples"] == 16 * len(steps)
    rates = [step["learning_rate"] for step in steps]
    assert rates.index(max(rates)) == round(len(steps) / 10) - 1
    assert 1 <= rows[2]["seconds"] / budget < 1.5

    printed = capfd.readouterr().out
    for row in rows:
        recall = row["sets"]["held_out"]["image_to_text"]["r@1"]
        line = next(one for one in printed.splitlines() if one.startswith(row["name"] + "  "))
        assert f"{row['samples']:,}" in line and f"{recall:.1%} / " in line
    assert "one seed" in printed
    page = (options.runs / "two_stage_0" / "report.html").read_text()
    assert CONTROL in page and CNN in page


def test_a_finished_run_of_the_same_recipe_is_taken_over_and_no_other(
    options, first_rows, tmp_path, capsys
):
    own = tmp_path / "taken"
    shutil.copytree(options.runs / "two_stage_0", own)
    asked = Comparison.resolve(replace(options, out=tmp_path / "rows.json", finished_run=own))
    assert put_two_stage(asked, 0).budget == first_rows[0]["seconds_budget"]
    (row,) = rows_of(tmp_path / "rows.json")
    assert row == first_rows[0] | {"run": str(own)}

    def why(seed: int = 0, **machine: Any) -> str:
        other = replace(asked, machine=asked.machine | machine)
        assert taken_over(other, seed) is None
        return capsys.readouterr().out

    capsys.readouterr()
    assert "another recipe or seed" in why(seed=1)
    assert "ranks 1, not 2" in why(ranks=2)
    assert "not 9.9" in why(torch="9.9")
    log = (own / METRICS).read_text().splitlines(keepends=True)
    (own / METRICS).write_text("".join(log[:-1]))
    assert "not finished" in why()
    (own / METRICS).write_text("".join(log))
    assert taken_over(asked, 0) == own
    (own / "evaluation.json").write_text("{}")
    assert "not evaluated on ['held_out']" in why()
    recipe = yaml.safe_load((own / "recipe.yaml").read_text())
    recipe["optimizer"]["weight_decay"] = 0.3
    (own / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert "another recipe" in why()
    (own / "recipe.yaml").write_text("an: other\nprogram: {wrote: this}\n")
    assert "another recipe" in why()


@pytest.mark.soak
def test_rows_of_something_else_are_refused_in_one_line(options, first_rows, tmp_path):
    def refusal(**changed: Any) -> str:
        with pytest.raises(ValueError) as stopped:
            compare(replace(options, **changed))
        assert "\n" not in str(stopped.value)
        return str(stopped.value)

    other = yaml.safe_load(options.recipe.read_text())
    other["optimizer"]["weight_decay"] = 0.3
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    assert "another recipe_sha256" in refusal(recipe=tmp_path / "other.yaml")
    assert "two_stage_0 holds a run of another recipe" in refusal(
        recipe=tmp_path / "other.yaml", out=tmp_path / "new.json"
    )
    assert "another machine (ranks 1; asked for now: ranks 2)" in refusal(ranks=2)
    whole = json.loads(options.out.read_text())
    for name, change in {
        "another seconds_budget": {"seconds_budget": 1.0},
        "another machine (cpu i486": {"machine": whole["rows"][0]["machine"] | {"cpu": "i486"}},
    }.items():
        mixed = [*whole["rows"][:1], whole["rows"][0] | {"name": CNN} | change]
        (tmp_path / "mixed.json").write_text(json.dumps(whole | {"rows": mixed}))
        assert name in refusal(out=tmp_path / "mixed.json")
    (tmp_path / "mixed.json").write_text("{}")
    assert "not a comparison file" in refusal(out=tmp_path / "mixed.json")


def test_the_demo_control_is_the_demo_but_for_its_one_stage():
    demo, _ = parse(["--config", "pretrain/recipes/demo.yaml"])
    both = [
        "--config",
        "pretrain/recipes/demo.yaml",
        "--config",
        "benchmarks/demo_full_tokens.yaml",
    ]
    control, _ = parse(both)
    ours = replace(control, stages=demo.stages, checkpoint=demo.checkpoint, run_dir=demo.run_dir)
    assert ours == demo
    first, last = demo.stages["reduced"], demo.stages["full"]
    expected = replace(
        last,
        steps=control.stages["full"].steps,
        warmup_steps=None,
        warmup_share=0.1,
        base_learning_rate=first.base_learning_rate,
    )
    assert control.stages == {"full": expected}


def test_the_sentence_says_who_is_ahead_and_who_is_behind():
    def rows(*levels: float) -> list[dict[str, Any]]:
        return [
            {
                "seconds_budget": 300.0,
                "sets": {"a": {"image_to_text": {"r@1": x}, "text_to_image": {"r@1": x}}},
            }
            for x in levels
        ]

    one = verdict({"ours": rows(0.2), "large": rows(0.3), "small": rows(0.1)}, "ours")
    assert "behind large (30.0%) and ahead of small (10.0%); one seed" in one
    three = verdict({"ours": rows(0.2, 0.3), "close": rows(0.1, 0.25)}, "ours")
    assert "ahead of close (17.5%, within the spread of the seeds); means over 2 seeds" in three
