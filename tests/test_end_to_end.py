"""The main job at a tiny size: every part of the run folder, and what is made from it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain.data.dataset import Dataset
from pretrain.export import load
from pretrain.export import main as export
from pretrain.run.metrics import METRICS_FILE

ROOT = Path(__file__).resolve().parents[1]


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
    result = json.loads((tiny_run / "evaluation.json").read_text())
    n = len(Dataset(tiny_evaluation_set, "full"))
    for one in (result, *(stage["sets"] for stage in result["stages"])):
        for direction in ("image_to_text", "text_to_image"):
            figures = one["held_out"][direction]
            assert figures["n"] == n
            assert figures["chance_r@1"] == pytest.approx(1 / n)
            assert 0 <= figures["r@1"] <= figures["r@5"] <= figures["r@10"] <= 1
        zero_shot = one["held_out"]["zero_shot"]["subgroup"]
        assert zero_shot["classes"] > 1 and 0 < zero_shot["largest_class"] < 1
    assert [(s["after"], s["tokens"]) for s in result["stages"]] == [
        (after, at) for after in ("reduced", "full") for at in ("reduced", "full")
    ]
    assert result["held_out"] == result["stages"][-1]["sets"]["held_out"]


def test_export_loads_back_with_equal_embeddings(tiny_run, tmp_path, capsys):
    export(run=tiny_run, out=tmp_path / "model")
    assert "largest difference after loading 0.0e+00" in capsys.readouterr().out
    model = load(tmp_path / "model")
    images = model.encode_images([Image.new("RGB", (60, 80), c) for c in ("red", "blue")])
    texts = model.encode_texts(["red apple", "a cup of tea with a very long caption " * 5])
    assert images.shape == texts.shape == (2, 32)
    assert torch.allclose(images.norm(dim=1), torch.ones(2)) and not torch.equal(*images)
    with pytest.raises(FileNotFoundError, match=r"pretrain\.export"):
        load(tmp_path)


def test_evaluate_by_itself_gives_the_figures_of_the_run(tiny_run, tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pretrain.evaluate", "--run", tiny_run, "--out", out]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "R@1" in shown
    recorded = json.loads((tiny_run / "evaluation.json").read_text())["held_out"]
    assert json.loads(out.read_text())["held_out"] == recorded


def test_the_report_is_one_page_of_this_run(tiny_run):
    subprocess.run(
        [sys.executable, "-m", "pretrain.report", "--run", tiny_run], cwd=ROOT, check=True
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
