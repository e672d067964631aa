"""The main job at a tiny size: every part of the run folder, and what is made from it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import evaluate, export
from forked_runs import trained
from judged import last_figures, looked_up, points_of
from tiny_datasets import build_food
from tiny_runs import evaluation_options

from pretrain.base.run_files import METRICS_FILE
from pretrain.dataset.reader import Dataset

ROOT = Path(__file__).resolve().parents[2]


def events(run: Path, name: str) -> list[dict]:
    lines = (run / METRICS_FILE).read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_both_stages_run_in_one_job(tiny_run):
    steps = events(tiny_run, "step")
    assert [s["step"] for s in steps] == list(range(1, 11))
    assert [s["stage"] for s in steps] == ["reduced"] * 6 + ["full"] * 4
    assert [s["samples_seen"] for s in steps] == [16 * k for k in range(1, 11)]
    stages = events(tiny_run, "stage")
    assert [(s["image_tokens"], s["image_tokens_full"], s["text_tokens"]) for s in stages] == [
        (8, 16, 6), (36, 36, 12),
    ]  # fmt: skip
    assert all(math.isfinite(s["loss"]) and s["grad_norm"] > 0 for s in steps)
    # The first loss is that of guessing among the global batch, which two ranks share.
    assert abs(steps[0]["loss"] - math.log(16)) < 1.0
    assert events(tiny_run, "end")
    assert list((tiny_run / "tensorboard").glob("events.*"))


def test_evaluation_has_chance_beside_every_figure(tiny_run, tiny_evaluation_set):
    points = points_of(tiny_run / "evaluation.json")
    n = len(Dataset(tiny_evaluation_set, "full"))
    for point in points:
        one = looked_up(point["figures"], "retrieval")
        for direction in ("image_to_text", "text_to_image"):
            figures = one["held_out"][direction]
            assert figures["n"] == n
            assert figures["chance_r@1"] == pytest.approx(1 / n)
            assert 0 <= figures["r@1"] <= figures["r@5"] <= figures["r@10"] <= 1
        zero_shot = looked_up(point["figures"], "zero-shot")["held_out"]["subgroup"]
        assert zero_shot["classes"] > 1 and 0 < zero_shot["largest_class"] < 1
    assert [(s["after"], s["tokens"]) for s in points] == [
        (after, at) for after in ("reduced", "full") for at in ("reduced", "full")
    ]


def test_evaluate_by_itself_gives_the_figures_of_the_run(tiny_run, tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pretrain.evaluate", "--run_dir", tiny_run, "--out", out]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "R@1" in shown
    assert last_figures(out) == last_figures(tiny_run / "evaluation.json")


@pytest.mark.soak
def test_two_ranks_under_torchrun_evaluate_what_one_process_does(tiny_run, tmp_path):
    """At a longer context than was trained, whose untrained places belong to no rank or time."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("interpolate", "extend"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    figures = []
    for place, launcher in enumerate(([sys.executable], [*torchrun, "--nproc_per_node", "2"])):
        out = tmp_path / f"{place}.json"
        command = [*launcher, "-m", "pretrain.evaluate", "--run_dir", run, "--out", out]
        subprocess.run([*command, "--text_tokens", "20"], cwd=ROOT, check=True)
        figures.append(json.loads(out.read_text()))
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stage": "fulll"}, ["'fulll'", "'full', 'reduced'"]),
        ({"image_px": 0}, ["image_px=0", "multiple of 8"]),
        ({"image_px": 50}, ["image_px=50", "multiple of 8"]),
        ({"text_tokens": 1}, ["text_tokens=1", "2 or more"]),
        ({"sets": {"mine": Path("no/where")}}, ["evaluation.sets.mine", "no/where"]),
        ({"run_dir": Path("no/run")}, ["no/run", "give a run folder"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_answered_on_one_line(tiny_run, capsys, options, named):
    with pytest.raises(SystemExit) as stopped:
        evaluate(**{"run_dir": tiny_run, **options})
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert all(word in told for word in named), told


@pytest.mark.parametrize("command", [evaluate, export])
def test_an_unfinished_stage_is_refused_by_name(tiny_run, tmp_path, capsys, command):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "stages" / "full.safetensors").unlink()
    with pytest.raises(SystemExit) as stopped:
        command(run_dir=run)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "'full'" in told and "finished stages: ['reduced']" in told


def test_a_broken_evaluation_file_does_not_stop_the_run(
    tiny_run, tiny_dataset, tiny_evaluation_set, tmp_path
):
    """A full disk or a kill left half a file; the run's own metrics have the figures."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))  # so that the last stage ends again
    whole = (run / "evaluation.json").read_text()
    (run / "evaluation.json").write_text(whole[:200])
    (run / "gallery.json").write_text("")
    options = evaluation_options(tiny_evaluation_set)
    trained(run, tiny_dataset, *options, ranks=2, plain=False)
    assert json.loads((run / "evaluation.json").read_text()) == json.loads(whole)
    assert json.loads((run / "gallery.json").read_text())["images"]


def test_the_report_is_one_page_of_this_run(tiny_run):
    subprocess.run(
        [sys.executable, "-m", "pretrain.report", "--run_dir", tiny_run], cwd=ROOT, check=True
    )
    page = (tiny_run / "report.html").read_text()
    assert "held_out" in page and "data:image/jpeg;base64" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained


def test_one_plain_process_computes_what_two_ranks_do(tiny_run, tiny_dataset, tmp_path):
    command = [
        *(sys.executable, "-m", "pretrain.train", "--config", "pretrain/recipes/tiny.yaml"),
        *("--run_dir", tmp_path / "run", "--data.train", tiny_dataset),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    ours, theirs = (
        [s["loss"] for s in events(run, "step")] for run in (tmp_path / "run", tiny_run)
    )
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    assert worst < 1e-4, f"largest difference of a loss: {worst}"


def test_the_deepspeed_launcher_computes_the_same(tiny_run, tiny_dataset, tmp_path):
    command = [
        *(Path(sys.executable).parent / "deepspeed", "--num_gpus", "2", "--no_local_rank"),
        *("--module", "pretrain.train", "--config", "pretrain/recipes/tiny.yaml"),
        *("--run_dir", tmp_path / "run", "--data.train", tiny_dataset),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    ours, theirs = (
        [s["loss"] for s in events(run, "step")] for run in (tmp_path / "run", tiny_run)
    )
    assert ours == theirs


@pytest.mark.soak
def test_a_stage_that_enlarges_its_tiers_pictures_is_told_which_tier_to_take(
    tiny_dataset, tmp_path
):
    food = build_food(
        tmp_path / "set", "split = 'train'", "--tiers", "32:90,full:95",
        *("--tokenizer", str(tiny_dataset / "tokenizer.model")),
    )  # fmt: skip
    short = ("--stages.reduced.steps", "2", "--stages.full.steps", "1")
    said = trained(tmp_path / "run", food, "--data.tier", "32", *short)
    (line,) = [line for line in said.splitlines() if line.startswith("warning")]
    assert line == (
        "warning: stages.full.tokens.image_px=48 enlarges the pictures of tier 32, whose shorter "
        "side is 32 px at most: set stages.full.tier=full"
    )
