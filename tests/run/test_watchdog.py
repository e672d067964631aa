"""What stands still, or has lost a rank, ends: with a reason and a code, and nobody is left."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_runs import train
from launched_runs import LAUNCH, LONG, PLAIN_PYTHON, TORCHRUN, Run, free_port
from tiny_runs import ROOT

from pretrain.base.exit_codes import STALLED
from pretrain.recipe.run_options import SpikeOptions
from pretrain.run.health import SpikeWatch


@contextlib.contextmanager
def two_plain_ranks(tmp_path: Path, dataset: Path, *more: str):
    """Two ranks that only environment variables join: nobody stands above them."""
    joint = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    joint |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with contextlib.ExitStack() as stack:
        runs = []
        for rank in ("0", "1"):
            own = {**joint, "RANK": rank, "LOCAL_RANK": rank}
            run = Run(PLAIN_PYTHON, tmp_path / "run", dataset, *LONG, *more, environment=own)
            runs.append(stack.enter_context(run))
        yield runs


STEPS = """
import pathlib, sys
import torch
from pretrain.base import distributed, progress
from pretrain.base.faults import ended_at_once
from pretrain.recipe.run_options import WatchdogOptions
from pretrain.run.watchdog import watch

runtime = distributed.start()
watch(WatchdogOptions(timeout_s=4.0), pathlib.Path(sys.argv[1]), runtime.rank)
with ended_at_once():
    for step in range(10**9):
        progress.doing(f"in step {step}")
        distributed.sum_over_ranks(torch.ones(3))
        print("moves", flush=True)
"""


def test_a_rank_that_waits_for_a_stopped_one_says_where_and_ends(tmp_path):
    joint = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    joint |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", STEPS, str(tmp_path)],
            cwd=ROOT,
            env={**joint, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"said-{rank}").open("w"),
        )
        for rank in "01"
    )
    try:
        assert first.stdout is not None and second.stdout is not None
        assert first.stdout.readline() == b"moves\n"
        second.send_signal(signal.SIGSTOP)
        first.stdout.read()
        assert first.wait(40) == STALLED
        said = (tmp_path / "said-0").read_text()
        assert re.search(r"rank 0 on \S+ stands still: no progress for \d+ s .* in step \d+", said)
        (stacks,) = (tmp_path / "stacks").glob("rank0-*.txt")
        text = stacks.read_text()
        assert text.splitlines()[0] in said
        assert "in all_reduce" in text and "in sum_over_ranks" in text, text
        # Let go, the other one finds its peer gone, or that its own time has passed.
        second.send_signal(signal.SIGCONT)
        second.stdout.read()
        assert second.wait(60) in (1, STALLED)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


@pytest.mark.soak  # half a minute until it is seen, and half a minute that torchrun gives a rank
def test_a_stopped_rank_ends_the_job_under_a_launcher(tiny_dataset, tmp_path):
    options = [*LONG, "--watchdog.timeout_s", "30"]
    with Run([*LAUNCH, *TORCHRUN], tmp_path / "run", tiny_dataset, *options) as run:
        run.wait_for('"step": 3, ')
        run.ranks()[1].suspend()
        assert run.end(100) == STALLED, run.log.read_text()
        assert list((run.run_dir / "stacks").glob("rank0-*.txt"))


def test_a_thread_that_keeps_the_interpreter_to_itself_is_ended_too(tmp_path):
    program = (
        "import ctypes, pathlib, sys\n"
        "from pretrain.run import watchdog\n"
        "watchdog._BACKSTOP_S = 1.0\n"
        "options = watchdog.WatchdogOptions(timeout_s=1.0)\n"
        "watchdog.watch(options, pathlib.Path(sys.argv[1]), 0)\n"
        "import time; time.sleep(0.5)\n"
        "ctypes.PyDLL(None).sleep(60)\n"  # keeps the lock, unlike CDLL
    )
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1 and "Timeout (0:00:02)" in ended.stderr, ended.stderr
    assert 'File "<string>", line 7' in ended.stderr
    assert time.monotonic() - begin < 30


@pytest.mark.soak
def test_one_killed_rank_ends_all_within_a_minute(tiny_dataset, tmp_path):
    with Run([*LAUNCH, *TORCHRUN], tmp_path / "torchrun", tiny_dataset, *LONG) as run:
        run.wait_for('"step": 3, ')
        run.ranks()[1].kill()
        assert run.end(60) not in (0, 75)
        said = run.log.read_text()
        assert "Signal 9" in said or "Connection closed by peer" in said, said
    with two_plain_ranks(tmp_path, tiny_dataset) as (first, second):
        first.wait_for('"step": 3, ')
        second.process.kill()
        assert first.end(60) == 1
        assert re.search("Connection (closed|reset) by peer", first.log.read_text())


def test_a_spike_is_named_once_and_noise_is_not():
    watch = SpikeWatch(SpikeOptions(factor=1.5, window_logs=5, logs_in_a_row=2))
    calm = [2.0, 2.1, 1.9, 2.0, 2.2]
    losses = [*calm, 4.0, 2.0, float("nan"), 4.0, 4.1, 4.2, 2.0, 2.0, 2.0, 2.0, 9.0, 9.0]
    found = {place: usual for place, loss in enumerate(losses) if (usual := watch.see(loss))}
    assert set(found) == {9, 16}, found  # the second high one in a row, once each time
    assert found[9] == 2.0 or found[9] == 2.2, found
    silent = SpikeWatch(None)
    assert not any(silent.see(loss) for loss in losses)


def test_a_run_names_its_spikes_with_their_samples(tiny_dataset, tmp_path):
    """Weights that stand still: the losses of the batches scatter, and some are high."""
    ended = train(
        tmp_path / "run",
        tiny_dataset,
        *("--stages.reduced.steps", "12", "--stages.reduced.base_learning_rate", "1e-9"),
        *("--log.spikes.window_logs", "3", "--log.spikes.logs_in_a_row", "1"),
        *("--log.spikes.factor", "1.00001"),
    )
    assert ended.code == 0, ended.output
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event.get("stage") == "reduced"]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    high, expected = False, []
    for step in range(3, 12):
        usual = sorted(losses[step - 3 : step])[1]
        before, high = high, losses[step] > 1.00001 * usual
        if high and not before:
            expected.append((step + 1, losses[step], usual, step * 16, step * 16 + 15))
    kept = ("step", "loss", "median", "first_sample", "last_sample")
    found = [tuple(e[k] for k in kept) for e in events if e["event"] == "loss_spike"]
    assert expected and found == expected
    assert ended.output.count("was usual") >= len(expected)


def test_a_shard_that_is_waited_for_is_named(tmp_path):
    os.mkfifo(tmp_path / "00007.tar")  # nobody writes: opening it takes for ever
    program = (
        "import pathlib, sys, threading, time\n"
        "from pretrain.base import progress\n"
        "from pretrain.dataset.shards import SHARD_READER\n"
        "from pretrain.run import watchdog\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "watchdog.watch(watchdog.WatchdogOptions(timeout_s=1.5), folder, 0)\n"
        "progress.doing('waiting for the batch of step 9')\n"
        "SHARD_READER.read(str(folder / '00007.tar'), 0, 10)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == STALLED, ended.stderr
    wanted = rf"while waiting for the batch of step 9; reading {tmp_path}/00007.tar since \d s"
    assert re.search(wanted, ended.stderr), ended.stderr
