"""A sweep of trainings: a killed one goes on to the same rows, and what the rows say is drawn."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from judged import last_figures, looked_up
from tiny_runs import ROOT

from benchmarks.inverse_scaling import choose, main, parse
from benchmarks.law_picture import draw, ranked_reducers, write_picture
from benchmarks.law_rows import drops, estimate_s, noise
from benchmarks.law_sweep import Cell, Sweep, Training, cells, resolve
from pretrain.recipe.recipe import image_tokens

# Benchmarks are no part of the product: `make soak` runs what measures with them.
pytestmark = pytest.mark.soak

TIMEOUT_S = 100


@pytest.fixture(scope="module")
def sweep_file(
    tiny_dataset: Path, tiny_evaluation_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A sweep of two cells: the tiny recipe's model at 16 and at 36 image tokens."""
    folder = tmp_path_factory.mktemp("law")
    content = {
        "recipe": str(ROOT / "pretrain/recipes/tiny.yaml"),
        "runs": str(folder / "runs"),
        "common": {
            "data": {"train": str(tiny_dataset)},
            "evaluation": {"sets": {"held_out": str(tiny_evaluation_set)}},
            "stages": {"reduced": {"steps": 24}, "full": {"steps": 4}},
            "checkpoint": {"every_steps": 5},
        },
        "sizes": {"w32": {"model": {"image": {"width": 32}}}},
        "image_tokens": [36, 16],
        "text_tokens": [12],
        "middle": {"size": "w32", "image_tokens": 16, "text_tokens": 12},
        "drawn_set": "held_out",
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def changed(sweep_file: Path, tmp_path: Path, **options: Any) -> Path:
    """The sweep with other options, as a file of its own."""
    path = tmp_path / "changed.yaml"
    content = yaml.safe_load(sweep_file.read_text()) | options
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def words(config: Path, out: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--out", str(out), "--ranks", "1", *more]


def command(config: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.inverse_scaling", *words(config, out, *more)]


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (out / "rows").glob("*.json")}


def logged(run: Path, kind: str) -> list[dict[str, Any]]:
    """A run's events of a kind, without a line that is still being written."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


@pytest.mark.soak
def test_a_killed_sweep_goes_on_to_the_rows_of_an_undisturbed_one(sweep_file, tmp_path):
    out, runs = tmp_path / "out", sweep_file.parent / "runs"
    first, second = "w32_i16_t12_s0", "w32_i36_t12_s0"
    process = subprocess.Popen(command(sweep_file, out), cwd=ROOT)
    family = [psutil.Process(process.pid)]
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while len(logged(runs / second, "step")) <= 5:  # a checkpoint is whole by then
            assert process.poll() is None, "ended before the second run had a checkpoint"
            assert time.monotonic() < deadline, "no checkpoint of the second run"
            time.sleep(0.02)
        family += family[0].children(recursive=True)
        process.terminate()
        assert process.wait(TIMEOUT_S) != 0
        assert not psutil.wait_procs(family[1:], timeout=20)[1], "left training"
    finally:
        for member in family:
            if member.is_running():
                member.kill()
    killed = rows_of(out)
    assert list(killed) == [first]
    assert not logged(runs / second, "end"), "ended too late to show anything"

    done = subprocess.run(command(sweep_file, out), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are finished" in done.stdout
    rows = rows_of(out)
    assert rows[first] == killed[first]
    assert [event["samples_seen"] > 0 for event in logged(runs / second, "start")][:2] == [0, 1]
    assert (out / "law.png").stat().st_size > 10_000
    assert "Accuracy lost against 36 image tokens" in (out / "law.svg").read_text()

    # The second cell alone, as a Slurm array trains it, never disturbed.
    alone = tmp_path / "alone"
    content = yaml.safe_load(sweep_file.read_text()) | {"runs": str(tmp_path / "runs")}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    job = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_NAME": "law", "RANKS_PER_NODE": "1"}
    subprocess.run(
        ["bash", "slurm/law.sbatch", tmp_path / "alone.yaml", alone],
        cwd=ROOT,
        env={**os.environ, **job, "VENV": sys.prefix},
        check=True,
    )
    assert list(rows_of(alone)) == [second]
    mine, theirs = rows[second], rows_of(alone)[second]
    for key in ("cell", "recipe_sha256", "samples", "flops", "accuracy", "machine"):
        assert mine[key] == theirs[key], key

    assert mine["samples"] == rows[first]["samples"] == {"reduced": 24 * 16, "full": 4 * 16}
    assert mine["commit"] and mine["date"].startswith("20")
    assert mine["wall_s"] > mine["seconds"] > 0
    # By hand, in multiplications: 12 D² a block and token, 2 n² D a block for attention over n
    # tokens, 3 P² D a patch, D E a projection; 6 FLOPs each in training.
    per_sample = {
        n: 2 * 32**2 * 12 * (n + 1 + 12)
        + 2 * 2 * 32 * ((n + 1) ** 2 + 12**2)
        + n * 3 * 8**2 * 32
        + 2 * 32 * 32
        for n in (16, 36)
    }
    assert rows[first]["flops"] == 6 * (384 * per_sample[16] + 64 * per_sample[36])
    assert mine["flops"] == 6 * (384 + 64) * per_sample[36]
    # At equal lengths both figures are one evaluation's; at unlike ones they are two.
    assert mine["accuracy"]["reduced_at_own_lengths"] == mine["accuracy"]["reduced_at_full_lengths"]
    other = rows[first]["accuracy"]
    assert other["reduced_at_own_lengths"] != other["reduced_at_full_lengths"]
    final = looked_up(last_figures(runs / second / "evaluation.json"), "retrieval")["held_out"]
    assert mine["accuracy"]["full"]["held_out"] == {
        way: {name: value for name, value in rates.items() if name != "tier"}
        for way, rates in final.items()
    }

    # Another sweep's folder is refused, and so are rows of another recipe under the same sweep.
    shorter = changed(sweep_file, tmp_path, image_tokens=[36, 16, 4])
    assert "results of another sweep (another image_tokens)" in refusal(shorter, out)
    assert "another image_tokens" in refusal(shorter, out, "--plot-only")
    row = rows[second] | {"recipe_sha256": "0"}
    (out / "rows" / f"{second}.json").write_text(json.dumps(row))
    assert f"{second} was made by another recipe" in refusal(sweep_file, out)


def test_a_slice_ends_in_time_and_says_what_is_left(sweep_file, tmp_path):
    config = changed(sweep_file, tmp_path, runs=str(tmp_path / "runs"))
    begun = time.monotonic()
    done = subprocess.run(
        command(config, tmp_path / "out", "--slice-minutes", "0.1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 2 runs are finished" in done.stdout
    assert "left: w32_i16_t12_s0 w32_i36_t12_s0" in done.stdout
    assert time.monotonic() - begun < 40
    assert not rows_of(tmp_path / "out")
    children = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    assert not [one for one in children if str(tmp_path) in one], "left training"


def refusal(config: Path, out: Path, *more: str) -> str:
    """The one line that main ends with, by code 2."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from benchmarks.inverse_scaling import main; main(sys.argv[1:])",
            *words(config, out, *more),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_tokens": [36, 16, 20]}, "20 is no square grid"),
        ({"image_tokens": [49, 36, 16]}, "w32_i49_t12_s0: longer than the full stage"),
        ({"text_tokens": [12, 1]}, "w32_i16_t1_s0: stages.reduced.tokens.text_tokens=1"),
        ({"common": {"data": {"train": "/nowhere/train"}}}, "/nowhere/train"),
        ({"drawn_set": "other"}, "drawn_set=other is none of evaluation.sets"),
        ({"middle": {"size": "w9", "image_tokens": 16, "text_tokens": 12}}, "middle.size=w9"),
        ({"sizes": {"w32": {"model": {"widht": 3}}}}, "widht"),
        ({"image_token": [4]}, "image_token"),
    ],
)
def test_an_impossible_sweep_is_one_line_before_any_training(
    sweep_file, tmp_path, capsys, options, named
):
    given = yaml.safe_load(sweep_file.read_text())
    options = {
        name: given[name] | value if name == "common" else value for name, value in options.items()
    }
    config = changed(sweep_file, tmp_path, runs=str(tmp_path / "runs"), **options)
    with pytest.raises(SystemExit) as stopped:
        main(words(config, tmp_path / "out"))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_a_missing_evaluation_set_and_a_folder_of_something_else_are_one_line(
    sweep_file, tmp_path, capsys
):
    given = yaml.safe_load(sweep_file.read_text())["common"]
    given["evaluation"] = {"sets": {"held_out": "/nowhere/held_out"}}
    cases = {
        "/nowhere/held_out": words(changed(sweep_file, tmp_path, common=given), tmp_path / "out"),
        "is no sweep": words(sweep_file, sweep_file.parent),
        "the sweep has 2 cells": words(sweep_file, tmp_path / "out", "--cell", "2"),
        "holds no sweep": words(sweep_file, tmp_path / "out", "--plot-only"),
    }
    for named, arguments in cases.items():
        with pytest.raises(SystemExit):
            main(arguments)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and named in lines[0], lines


@pytest.mark.parametrize("name", ["law_demo", pytest.param("law_gpu", marks=pytest.mark.soak)])
def test_every_cell_of_the_sweeps_that_come_along_is_a_recipe(
    name, tiny_dataset, tiny_evaluation_set
):
    words = ["--config", str(ROOT / f"benchmarks/{name}.yaml"), "--out", "none"]
    sweep = parse(words)[0]
    common = dict(sweep.common)
    for stage, options in common["stages"].items():
        common["stages"][stage] = options | {"global_batch_samples": 16}
    sets = ("held_out_artist", "held_out_concepts", "held_out")
    common["evaluation"] = {"sets": dict.fromkeys(sets, str(tiny_evaluation_set)), "zero_shot": {}}
    common["data"] = {"tier": "full", "train": str(tiny_dataset)}
    trainings = resolve(replace(sweep, common=common), ranks=2)
    assert len(trainings) == 28
    samples = {tuple(one.samples.values()) for one in trainings}
    assert len(samples) == 1, f"unequal samples: {samples}"
    for one in trainings:
        reduced = one.recipe.stages["reduced"]
        assert image_tokens(one.recipe, reduced)[0] == one.cell.image_tokens
        tokens = reduced.tokens
        assert (tokens.text_tokens, tokens.text_reduction) == (
            one.cell.text_tokens,
            one.cell.text_reduction,
        )
        full = one.recipe.stages["full"].tokens
        assert (one.cell.image_reduction == "resize") == (tokens.image_reduction == "none")
        assert tokens.image_reduction == "none" or tokens.image_px == full.image_px


@pytest.fixture
def demo() -> Sweep:
    return parse(["--config", str(ROOT / "benchmarks/law_demo.yaml"), "--out", "none"])[0]


def row(cell: Cell, accuracy: float, flops: float = 1e13, wall_s: float = 100.0) -> dict[str, Any]:
    """A row of a given accuracy, the mean of two directions that differ."""
    recall = {"image_to_text": {"r@1": accuracy - 0.1}, "text_to_image": {"r@1": accuracy + 0.1}}
    at = {"held_out_artist": recall}
    names = ("reduced_at_own_lengths", "reduced_at_full_lengths", "full")
    return {
        "name": cell.name,
        "cell": asdict(cell),
        "flops": flops,
        "wall_s": wall_s,
        "accuracy": dict.fromkeys(names, at),
    }


def at(size: str = "w128", image: int = 16, text: int = 8, **more: Any) -> Cell:
    return Cell(size=size, image_tokens=image, text_tokens=text, **more)


def test_drops_and_noise_are_those_of_known_rows(demo):
    rows = [
        row(at(image=64), 0.5),
        row(at(), 0.42),
        row(at(seed=1), 0.46),
        row(at(image=4), 0.3),
        row(at(size="w64"), 0.2),  # without its longest length: no drop is known
    ]
    assert drops(demo, rows, "image_tokens", "w128") == [
        (64, 0.0),
        (16, pytest.approx(0.06)),
        (4, pytest.approx(0.2)),
    ]
    assert drops(demo, rows, "text_tokens", "w128") == []
    assert drops(demo, rows, "image_tokens", "w64") == []
    assert noise(rows, demo.drawn_set) == pytest.approx(0.04 / 2**0.5)
    assert noise(rows[:2], demo.drawn_set) is None


def test_the_picture_is_drawn_of_any_part_of_the_rows(demo, tmp_path):
    everything = [row(cell, 0.3 + 0.001 * n, 1e13 + n) for n, cell in enumerate(cells(demo))]
    for count in (0, 1, 5, len(everything)):
        for path in write_picture(tmp_path, demo, everything[:count]):
            assert path.stat().st_size > 5_000
    assert (tmp_path / "law.svg").read_text().count("no rows yet") == 0
    assert "one standard deviation over seeds" in (tmp_path / "law.svg").read_text()

    rows = [row(at(image=64), 0.5), row(at(image=4), 0.3), row(at(size="w192", image=64), 0.6)]
    image, text, compute, reducers = draw(demo, rows).axes
    lines = {c.get_label(): c.lines[0].get_xydata().tolist() for c in image.containers}
    assert lines == {"w128": [[64, 0], [4, pytest.approx(0.2)]], "w192": [[64, 0]]}
    assert not image.containers[0].has_yerr and not text.containers
    assert len(compute.containers) == 2
    assert [one.get_text() for one in reducers.texts] == ["no rows yet"]

    # With a second seed a drop is the difference of two runs: sqrt(2) of one run's deviation.
    rows += [row(at(), 0.40), row(at(seed=1), 0.42)]
    (image, *_) = draw(demo, rows).axes
    bar = image.containers[0].lines[2][0].get_segments()[1]
    assert (bar[1][1] - bar[0][1]) / 2 == pytest.approx(0.02)


def test_reducers_are_ranked_within_image_and_text(demo):
    rows = [
        row(at(), 0.3),
        row(at(image_reduction="block"), 0.4),
        row(at(text=4), 0.2),
        row(at(text=4, text_reduction="syntax"), 0.1),
    ]
    names = [name for name, _, _ in ranked_reducers(demo, rows)]
    assert names == ["image 16: block", "image 16: resize", "text 4: truncate", "text 4: syntax"]


def test_the_middle_comes_first_and_half_a_sweep_has_a_drop_at_every_size(demo):
    order = cells(demo)
    assert order[0] == at()
    assert len(order) == len(set(order)) == 28
    half = [row(cell, 0.3) for cell in order[:14]]
    for size in demo.sizes:
        for axis in ("image_tokens", "text_tokens"):
            assert len(drops(demo, half, axis, size)) >= 2, (size, axis)


def test_a_run_that_does_not_fit_the_slice_is_not_started():
    def training(name: str, flops: float) -> Training:
        cell = Cell(size=name, image_tokens=4, text_tokens=4)
        return Training(cell=cell, arguments=[], recipe=None, samples={}, flops=flops)  # type: ignore[arg-type]

    large, small = training("large", 8e13), training("small", 2e13)
    rows = [row(at(), 0.3, 1e13, 60.0), row(at(image=64), 0.3, 3e13, 100.0)]
    assert estimate_s(rows, 8e13) == pytest.approx(200)  # 40 s and 2 s a TFLOP
    assert estimate_s([], 8e13) is None
    for left_s, is_first, expected in (
        (210.0, False, large),
        (190.0, False, small),
        (70.0, False, None),
        (70.0, True, large),  # goes on in the next slice
        (None, False, large),
    ):
        assert choose([large, small], rows, left_s, is_first) is expected
    assert choose([large], [], 0.0, False) is None
