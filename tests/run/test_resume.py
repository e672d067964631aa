"""Nothing is lost: a run killed at any instant goes on exactly as if it had not been."""

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from forked_runs import trained
from launched_runs import TORCHRUN, Run
from tiny_runs import ROOT, evaluation_options, train_command

from pretrain.base.run_files import METRICS_FILE
from pretrain.run.stage_weights import read_stage_weights

TIMEOUT_S = 240


def kill_after(command: list[str], run_dir: Path, line: str) -> None:
    """Start a run and kill -9 its launcher and every rank once its log holds `line`."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        path = run_dir / METRICS_FILE
        while time.monotonic() < deadline and process.poll() is None:
            if path.is_file() and line in path.read_text():
                return
            time.sleep(0.02)
        raise AssertionError(f"the run ended or hung before {line!r} was logged")
    finally:
        # torchrun gives each rank a session of its own, so there is no group to kill.
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
                member.wait()


def numbers(run_dir: Path) -> list[tuple]:
    """Everything of the log but times and rates, in order, without the starts and the ends of
    saves, which come when the disk is done."""
    kept = ("event", "stage", "step", "samples_seen", "loss", "grad_norm", "logit_scale", "sets")
    left_out = ("start", "checkpoint_written")
    events = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    return [tuple(e.get(k) for k in kept) for e in events if e["event"] not in left_out]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param('"step": 5, ', marks=pytest.mark.soak),
        pytest.param('"event": "stage", "time"', marks=pytest.mark.soak),
        '"step": 8, ',
    ],
)
def test_a_killed_run_continues_with_identical_numbers(
    tiny_run, tiny_dataset, tiny_evaluation_set, tmp_path, moment
):
    run_dir = tmp_path / "run"
    command = train_command(run_dir, tiny_dataset, *evaluation_options(tiny_evaluation_set))
    if moment.startswith('"event"'):
        moment = '"stage": "full", "samples_seen": 96, "step": 6'  # between the stages
    kill_after(command, run_dir, moment)
    assert '"event": "end"' not in (run_dir / METRICS_FILE).read_text(), "killed too late"
    options = evaluation_options(tiny_evaluation_set)
    trained(run_dir, tiny_dataset, *options, ranks=2, plain=False)
    assert numbers(run_dir) == numbers(tiny_run)
    for stage in ("reduced", "full"):
        ours, our_scale = read_stage_weights(run_dir, stage)
        theirs, their_scale = read_stage_weights(tiny_run, stage)
        assert torch.equal(our_scale["log_scale"], their_scale["log_scale"])
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_continued_is_refused_with_the_remedy(tiny_run, tiny_dataset, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    command = train_command(run_dir, tiny_dataset, "--seed", "1", ranks=1)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "seed=1 (was 0)" in result.stderr and "another run_dir" in result.stderr


def test_ranks_end_with_their_launcher(tiny_dataset, tmp_path):
    """kill -9 of torchrun alone: no rank trains on."""
    run_dir = tmp_path / "run"
    command = train_command(run_dir, tiny_dataset, "--stages.reduced.steps", "100000")
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + TIMEOUT_S
    metrics = run_dir / METRICS_FILE
    while not (metrics.is_file() and '"event": "step"' in metrics.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (alive := [rank for rank in ranks if is_alive(rank)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for rank in alive:
        rank.kill()
    assert len(ranks) >= 2 and not alive, f"{len(alive)} of {len(ranks)} processes trained on"


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE  # nobody here reaps an orphan
    return False


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_kills_of_a_rank_all_ranks_or_the_launcher_change_nothing(tiny_dataset, tmp_path):
    """kill -9 at random moments of one run, its starts among them."""
    steps = ("--stages.reduced.steps", "400", "--checkpoint.every_steps", "7")
    with Run(TORCHRUN, tmp_path / "undisturbed", tiny_dataset, *steps) as run:
        assert run.end() == 0
    draws = np.random.default_rng(0)
    run_dir, log = tmp_path / "run", tmp_path / "run" / METRICS_FILE
    victims = []
    while len(victims) < 20:
        with Run(TORCHRUN, run_dir, tiny_dataset, *steps) as run:
            if draws.random() < 0.8:  # else somewhere in its start
                past = len(log.read_text()) if log.is_file() else 0
                run.wait_for('"event": "step"', past=past)
            else:
                time.sleep(4 * draws.random())
            time.sleep(0.5 * draws.random())
            ranks, victim = run.ranks(), draws.choice(["rank 0", "rank 1", "ranks", "launcher"])
            chosen = {"rank 0": ranks[:1], "rank 1": ranks[1:], "ranks": ranks}.get(
                victim, [psutil.Process(run.process.pid)]
            )
            for process in chosen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if chosen:
                victims.append(str(victim))
                assert run.end(60) != 0, f"{victims} ended well: {run.log.read_text()}"
    with Run(TORCHRUN, run_dir, tiny_dataset, *steps) as run:
        assert run.end() == 0
    assert set(victims) == {"rank 0", "rank 1", "ranks", "launcher"}
    # Ranks whose launcher was killed save before they end.
    saved = ("checkpoint", "stop")
    found, wanted = (
        [line for line in numbers(run) if line[0] not in saved]
        for run in (run_dir, tmp_path / "undisturbed")
    )
    assert found == wanted
    for name in ("reduced", "full"):
        ours, theirs = (
            (folder / "stages" / f"{name}.safetensors").read_bytes()
            for folder in (run_dir, tmp_path / "undisturbed")
        )
        assert ours == theirs
    print(f"{len(victims)} kills: {victims}")
