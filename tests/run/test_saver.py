"""Saves go on behind the steps; what fails is named and tried again; what is kept is kept."""

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import Case, build_engine, one_step
from ranks import run_ranks
from safetensors.torch import load_file

CASE = Case(zero="1")


def opened(
    rank: int, folder: Path, log_folder: Path | None = None, **options: Any
) -> tuple[Any, Any]:
    """A saver with a real log, and that log."""
    from pretrain.base.distributed import Runtime
    from pretrain.recipe.run_options import CheckpointOptions
    from pretrain.run.metrics import RunLog
    from pretrain.run.saver import Saver

    world = torch.distributed.get_world_size()
    runtime = Runtime(rank=rank, local_rank=rank, world_size=world, device=torch.device("cpu"))
    where = log_folder or folder
    log = RunLog(where, is_main=rank == 0, samples=0, samples_seen=0)
    return Saver(folder / "checkpoints", CheckpointOptions(**options), runtime, log), log


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def tags(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def state_of(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint on the disk."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "checkpoints" / tag).glob("*.safetensors")):
        found |= load_file(str(path))
    return found


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name, value in theirs.items() if not torch.equal(ours[name], value)]


def steps_go_on(rank: int, folder: Path) -> dict[str, Any]:
    """A save that is held up, then fails; one that is written while the next steps are made; what
    is on the disk."""
    from pretrain.base.faults import StoppedError
    from pretrain.run import checkpoint
    from pretrain.run import saver as saver_module
    from pretrain.run.record import RunState

    saver, log = opened(rank, folder, every_steps=1)
    engine = build_engine(CASE)
    found: dict[str, Any] = {"losses": [one_step(engine, CASE, 0).loss]}
    written, goes_on = saver_module.write_durably, threading.Event()

    def held_up(path: Path, content: str) -> None:
        goes_on.wait()
        raise OSError("held up")

    saver_module.write_durably = held_up  # this process is a fork
    torch.distributed.barrier()
    saver.save(engine, RunState(step=1), {})
    for step in (1, 2):
        found["losses"].append(one_step(engine, CASE, step).loss)
        assert saver.due(step + 1)
    found["while held up"] = tags(folder)
    torch.distributed.barrier()
    goes_on.set()
    saver.wait()
    saver_module.write_durably = written
    torch.distributed.barrier()  # the main rank has removed what was written
    found["after the failure"] = tags(folder)

    saver.save(engine, RunState(step=3), {})
    for step in (3, 4):
        found["losses"].append(one_step(engine, CASE, step).loss)
        saver.due(step + 1)
    saver.finish()
    share = engine.training_state()
    as_it_was = {name: value.clone() for name, value in share.items()}
    one_step(engine, CASE, 5)
    found["changed by a step"] = differing(share, as_it_was)
    found["stays so"] = not differing(share, as_it_was)
    if rank == 1:
        file = folder / "checkpoints/step-00000003/state-00001-of-00002.safetensors"
        file.rename(file.with_suffix(".late"))
    torch.distributed.barrier()
    with pytest.raises(StoppedError, match="is missing on") as refusal:
        checkpoint.load(engine, folder / "checkpoints", "step-00000003", late_files_s=0.2)
    found["refusal"] = str(refusal.value)
    torch.distributed.barrier()
    if rank == 1:
        file.with_suffix(".late").rename(file)
    log.close()
    engine.close()
    return found


def undisturbed(rank: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of five steps that are never saved, and this rank's share after three."""
    engine = build_engine(CASE)
    losses = [one_step(engine, CASE, step).loss for step in range(3)]
    share = engine.training_state()
    losses += [one_step(engine, CASE, step).loss for step in (3, 4)]
    engine.close()
    return losses, share


def test_steps_go_on_while_a_save_is_written_and_it_holds_the_step_it_was_asked_at(tmp_path):
    ranks = run_ranks(steps_go_on, 2, tmp_path)
    theirs = run_ranks(undisturbed, 2)
    for rank, found in enumerate(ranks):
        assert found["while held up"] == ["step-00000001.incomplete"]
        assert found["after the failure"] == []
        assert found["losses"] == theirs[rank][0]
        assert found["stays so"], f"not a copy: {found['changed by a step']}"
        assert "checkpoint.late_files_s=0.2" in found["refusal"]
    expected = {**theirs[0][1], **theirs[1][1]}
    different = differing(state_of(tmp_path, "step-00000003"), expected)
    assert not different, f"not of step 3: {different}"
    (failed,) = events(tmp_path, "checkpoint_failed")
    assert (failed["step"], failed["in_a_row"]) == (1, 1) and failed["reason"]
    (written,) = events(tmp_path, "checkpoint_written")
    files = (tmp_path / "checkpoints/step-00000003").glob("*.safetensors")
    assert written["step"] == 3 and written["write_s"] > 0
    assert written["bytes"] == sum(path.stat().st_size for path in files)
    waited = [
        (event["step"], event["wait_s"] >= event["copy_s"] > 0)
        for event in events(tmp_path, "checkpoint")
    ]
    assert waited == [(1, True), (3, True)]


def fill(folder: Path) -> None:
    """Take all the room of a file system."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


def full_disk(rank: int, folder: Path, log_folder: Path) -> list[Any]:
    """(failures of two retries, the stop after three, and of a save that something relies on)"""
    from pretrain.base.faults import StoppedError
    from pretrain.run.record import RunState

    saver, log = opened(rank, folder, log_folder, every_steps=1, keep=1)
    found: list[Any] = []

    def save(step: int) -> None:
        saver.save(None, RunState(step=step), {"words": ["long"] * 2000})
        saver.wait()
        torch.distributed.barrier()
        found.append(tags(folder))
        torch.distributed.barrier()

    def room(wanted: bool) -> None:
        if rank == 0:
            (folder / "ballast").unlink(missing_ok=True)
            if not wanted:
                fill(folder)
        torch.distributed.barrier()

    save(1)
    room(False)
    save(2)
    save(3)
    room(True)
    save(4)
    room(False)
    for step in (5, 6, 7):
        save(step)
    with pytest.raises(StoppedError, match="3 times in a row") as stop:
        saver.save(None, RunState(step=8), {})
    with pytest.raises(StoppedError, match="make room"):
        saver.finish()
    room(True)
    log.close()
    return [*found, str(stop.value)]


def test_a_failed_save_is_tried_again_and_three_in_a_row_stop_all_ranks(small_disk, tmp_path):
    folder, _ = small_disk
    first, *others = run_ranks(full_disk, 2, folder, tmp_path)
    *kept, stop = first
    one, four = ["step-00000001"], ["step-00000004"]
    assert kept == [one, one, one, four, four, four, four]
    assert "no space left" in stop and stop.count("\n") == 0
    assert all(other == first for other in others)
    failed = [(event["step"], event["in_a_row"]) for event in events(tmp_path, "checkpoint_failed")]
    assert failed == [(2, 1), (3, 2), (5, 1), (6, 2), (7, 3)]


def clocks(rank: int, folder: Path) -> list[int]:
    """Steps at which a save was due by the clock, where the ranks' clocks began at other times."""
    from pretrain.run.record import RunState

    time.sleep(1.5 * rank)
    saver, log = opened(rank, folder, every_steps=None, every_minutes=2 / 60, keep=99)
    due = []
    for step in range(1, 1001):
        time.sleep(0.05)
        if saver.due(step):
            due.append(step)
            saver.save(None, RunState(step=step), {})
        if len(due) == 3:
            break
    saver.finish()
    log.close()
    return due


def test_saves_by_the_clock_are_at_the_same_step_on_all_ranks(tmp_path):
    due, others = run_ranks(clocks, 2, tmp_path)
    assert due == others and len(due) == 3
    assert tags(tmp_path) == [f"step-{step:08d}" for step in due]
    times = [event["time"] for event in events(tmp_path, "checkpoint")]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(gap > 1.9 for gap in gaps), gaps


def many(rank: int, folder: Path, steps: list[int]) -> None:
    from pretrain.run.record import RunState

    saver, log = opened(rank, folder, keep=2, keep_every_steps=10)
    for step in steps:
        saver.save(None, RunState(step=step), {})
    saver.finish()
    log.close()


def test_the_first_at_or_past_each_multiple_is_kept_for_ever(tmp_path):
    run_ranks(many, 1, tmp_path, [4, 8, 10, 13, 19, 31, 36, 40, 44, 48, 49])
    assert tags(tmp_path) == [f"step-{step:08d}" for step in (10, 31, 40, 48, 49)]
