"""A run that is asked to stop saves, says by its exit code that it goes on, and does so exactly."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from forked_runs import train as train_here
from launched_runs import DEEPSPEED, LAUNCH, LONG, PLAIN_PYTHON, TIMEOUT_S, TORCHRUN, Run
from tiny_runs import ROOT

from pretrain.base.exit_codes import CONTINUE, INTERRUPTED
from pretrain.base.run_files import CHECKPOINTS, METRICS_FILE
from pretrain.run import checkpoint
from pretrain.run.record import RunState
from pretrain.run.stage_weights import read_stage_weights


def stopped_at(run_dir: Path) -> RunState:
    found = checkpoint.newest(run_dir / CHECKPOINTS, late_files_s=0)
    assert found is not None, "no checkpoint"
    return found.state


@pytest.mark.parametrize(
    ("start", "to", "sent", "code"),
    [
        pytest.param(PLAIN_PYTHON, "root", signal.SIGTERM, CONTINUE, id="python"),
        pytest.param(
            PLAIN_PYTHON,
            "root",
            signal.SIGINT,
            CONTINUE,
            id="python, a person",
            marks=pytest.mark.soak,
        ),
        pytest.param(TORCHRUN, "root", signal.SIGTERM, 1, id="torchrun", marks=pytest.mark.soak),
        pytest.param(
            TORCHRUN,
            "root",
            signal.SIGUSR1,
            -10,
            id="torchrun, which dies of USR1",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            TORCHRUN, "rank 1", signal.SIGUSR1, 1, id="one rank of torchrun", marks=pytest.mark.soak
        ),
        pytest.param([*LAUNCH, *TORCHRUN], "root", signal.SIGUSR1, CONTINUE, id="launch torchrun"),
        pytest.param(
            [*LAUNCH, *TORCHRUN],
            "rank 1",
            signal.SIGTERM,
            CONTINUE,
            id="its rank",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            DEEPSPEED,
            "rank 1",
            signal.SIGUSR1,
            CONTINUE,
            id="one rank of deepspeed",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            DEEPSPEED,
            "root",
            signal.SIGTERM,
            -15,
            id="deepspeed, which dies of TERM",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            [*LAUNCH, *DEEPSPEED],
            "root",
            signal.SIGTERM,
            CONTINUE,
            id="launch ds",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_signal_ends_in_a_checkpoint_of_the_last_step(
    tiny_dataset, tmp_path, start, to, sent, code
):
    with Run(start, tmp_path / "run", tiny_dataset, *LONG) as run:
        run.wait_for('"step": 3, ')
        ranks = run.ranks()
        begin = time.time()
        (ranks[1] if to == "rank 1" else run.process).send_signal(sent)
        assert run.end() == code, run.log.read_text()
        ended = time.time()
        state = stopped_at(run.run_dir)
        last = run.events("step")[-1]
        assert (state.step, state.samples_seen) == (last["step"], last["samples_seen"])
        stop = run.events("stop")
        assert [one["step"] for one in stop] == [state.step]
        saved = (run.run_dir / CHECKPOINTS / f"step-{state.step:08d}").stat().st_mtime
        print(f"checkpoint after {saved - begin:.2f} s, all ended after {ended - begin:.2f} s")
        assert begin < saved <= stop[0]["time"]


def test_a_second_ctrl_c_ends_at_once_whatever_hangs(tiny_dataset, tmp_path):
    with Run([*LAUNCH, *TORCHRUN], tmp_path / "run", tiny_dataset, *LONG) as run:
        run.wait_for('"step": 1, ')
        other = run.ranks()[1]
        other.suspend()  # so the first rank waits in a collective
        run.process.send_signal(signal.SIGINT)
        run.wait_for("SIGINT: a checkpoint after this step", log=True)
        run.process.send_signal(signal.SIGINT)  # the same one, as another way brings it
        time.sleep(1.5)
        run.process.send_signal(signal.SIGINT)
        run.wait_for("SIGINT again", log=True)
        other.resume()
        assert run.end() == INTERRUPTED, run.log.read_text()
        assert checkpoint.newest(run.run_dir / CHECKPOINTS, late_files_s=0) is None


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(PLAIN_PYTHON, id="python"),
        pytest.param([*LAUNCH, *TORCHRUN], id="torchrun", marks=pytest.mark.soak),
    ],
)
def test_before_training_it_ends_at_once_and_asks_to_be_continued(tiny_dataset, tmp_path, start):
    with Run(start, tmp_path / "run", tiny_dataset, *LONG) as run:
        deadline = time.monotonic() + TIMEOUT_S
        while not (run.run_dir / "lock").is_file():  # owned, and DeepSpeed is not there yet
            assert time.monotonic() < deadline and run.process.poll() is None
            time.sleep(0.01)
        run.look()
        run.process.send_signal(signal.SIGTERM)
        assert run.end(20) == CONTINUE, run.log.read_text()
        assert not (run.run_dir / METRICS_FILE).is_file() or not run.events("step")


def test_the_launchers_other_ends_keep_their_codes(tiny_dataset, tmp_path):
    wrong = ["--stages.full.stepz", "3"]
    with Run([*LAUNCH, *TORCHRUN], tmp_path / "run", tiny_dataset, *wrong) as run:
        assert run.end() == 2
    assert subprocess.run([*LAUNCH, "true"], cwd=ROOT, check=False).returncode == 0
    assert subprocess.run([*LAUNCH, "false"], cwd=ROOT, check=False).returncode == 1
    killed = subprocess.run([*LAUNCH, "bash", "-c", "kill -9 $$"], cwd=ROOT, check=False)
    assert killed.returncode == 128 + 9
    missing = subprocess.run([*LAUNCH, "no-such"], cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1


@pytest.mark.soak
@pytest.mark.parametrize(
    "moments", [['"step": 2, ', '"event": "checkpoint"', '"event": "evaluation"']]
)
def test_a_run_stopped_in_any_place_equals_the_undisturbed_one(
    tiny_dataset, tiny_evaluation_set, tmp_path, moments
):
    """Stopped in a stage, in its last step, while it evaluates, and while it saves."""
    sets = ["--evaluation.sets", f"{{held_out: {tiny_evaluation_set}}}"]
    sets += ["--evaluation.every_steps", "2"]
    undisturbed = tmp_path / "undisturbed"
    assert train_here(undisturbed, tiny_dataset, *sets).code == 0
    run_dir = tmp_path / "stopped"
    metrics = run_dir / METRICS_FILE
    stops = []
    for moment in (*moments, None):
        before = len(metrics.read_text()) if metrics.is_file() else 0
        with Run(PLAIN_PYTHON, run_dir, tiny_dataset, *sets) as run:
            if moment is not None:
                run.wait_for(moment, past=before)
                run.process.send_signal(signal.SIGTERM)
            stops.append(run.end())
            if moment is None:
                break
    assert stops[0] == CONTINUE and stops[-1] == 0 and set(stops) <= {0, CONTINUE}, stops
    assert steps(run_dir) == steps(undisturbed)
    for stage in ("reduced", "full"):
        ours, our_objective = read_stage_weights(run_dir, stage)
        theirs, their_objective = read_stage_weights(undisturbed, stage)
        assert torch.equal(our_objective["log_scale"], their_objective["log_scale"])
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def steps(run_dir: Path) -> list[tuple]:
    kept = ("stage", "step", "samples_seen", "loss", "grad_norm", "logit_scale", "sets", "tokens")
    events = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    return [tuple(e.get(k) for k in kept) for e in events if e["event"] in ("step", "evaluation")]
