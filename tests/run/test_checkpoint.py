"""Checkpoints are complete or absent, and a full disk costs none of those before it."""

import json
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from forked_runs import train

from pretrain.run.checkpoint import newest


def damage(checkpoint: Path) -> None:
    victim = max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


@pytest.fixture(scope="module")
def stopped(tiny_dataset, tmp_path_factory) -> Path:
    """A run of 12 + 4 steps, with the checkpoints at 3, 6 and 9, inside its first stage."""
    run_dir = tmp_path_factory.mktemp("checkpoint") / "run"
    ended = train(run_dir, tiny_dataset, "--checkpoint.keep", "9", "--stages.reduced.steps", "12")
    assert ended.code == 0, ended.output
    for step in (12, 15, 16):
        shutil.rmtree(run_dir / f"checkpoints/step-{step:08d}")
    return run_dir


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(stopped, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    (folder / "step-99999999.incomplete").mkdir()  # of a killed save
    found = newest(folder, late_files_s=0)
    assert found is not None and (found.tag, found.state.step) == ("step-00000009", 9)
    damage(folder / "step-00000009")
    found = newest(folder, late_files_s=0)
    assert found is not None and found.state.step == 6
    assert "step-00000009 is damaged" in capsys.readouterr().out
    (folder / "step-00000006/state.json").unlink()
    damage(folder / "step-00000003")
    with pytest.raises(RuntimeError, match="all 2 checkpoints"):
        newest(folder, late_files_s=0)


def test_a_damaged_checkpoint_never_outlives_a_good_one(stopped, tiny_dataset, tmp_path):
    """After a fall-back, and with a save at other steps, the one kept is not the damaged one."""
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    damage(run_dir / "checkpoints/step-00000009")
    more = ("--checkpoint.keep", "1", "--checkpoint.every_steps", "7")
    ended = train(run_dir, tiny_dataset, "--stages.reduced.steps", "12", *more)
    assert ended.code == 0, ended.output
    assert "step-00000009 is damaged" in ended.output
    found = newest(run_dir / "checkpoints", late_files_s=0)
    assert found is not None and found.state.step == 16


def test_a_link_in_the_place_of_a_killed_save_is_removed_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "checkpoints").mkdir()
    link = tmp_path / "checkpoints/step-00000003.incomplete"
    link.symlink_to(elsewhere)
    assert newest(tmp_path / "checkpoints", late_files_s=0) is None
    assert not link.is_symlink() and (elsewhere / "kept").exists()


def test_a_missing_rank_file_is_damage(stopped, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    (folder / "step-00000009/state-00000-of-00001.safetensors").unlink()
    found = newest(folder, late_files_s=0)
    assert found is not None and found.state.step == 6


def test_files_of_other_nodes_that_are_seen_late_are_waited_for(stopped, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    file = folder / "step-00000009/state-00000-of-00001.safetensors"
    whole = file.read_bytes()

    def found_after(seconds: float, late_files_s: float) -> tuple[int, float]:
        """(step of what is found, seconds) where the file is whole only after so many seconds."""
        begin = time.monotonic()
        arrival = threading.Timer(seconds, file.write_bytes, [whole])
        arrival.start()
        found = newest(folder, late_files_s=late_files_s)
        arrival.cancel()
        assert found is not None
        return found.state.step, time.monotonic() - begin

    file.unlink()
    step, seconds = found_after(1.0, 60)
    assert step == 9 and seconds >= 1.0
    file.write_bytes(whole[: len(whole) // 2])
    step, seconds = found_after(1.0, 60)
    assert step == 9 and seconds >= 1.0
    assert capsys.readouterr().out == ""
    file.write_bytes(whole[: len(whole) // 2])
    step, seconds = found_after(600, 0.5)
    assert step == 6 and seconds >= 0.5
    said = capsys.readouterr().out
    assert f"has {len(whole) // 2} of {len(whole)} bytes" in said and "late_files_s=0.5" in said


def test_the_screen_shows_stages_figures_and_nothing_of_deepspeed(
    tiny_dataset, tiny_evaluation_set, tmp_path
):
    ended = train(
        *(tmp_path / "run", tiny_dataset, "--engine.precision", "bf16"),
        *("--evaluation.sets", f"{{held: {tiny_evaluation_set}}}"),
    )
    assert ended.code == 0, ended.output
    lines = [line.strip() for line in re.split(r"[\r\n]", ended.output)]
    begins = ("stage reduced, step 0 of 6", "stage full, step 0 of 4", "the bar:", "R@1: the share")
    begins += ("plan: ", "about ", "finished: 160 samples")
    for begin in begins:
        assert sum(line.startswith(begin) for line in lines) == 1, begin
    figures = ("reduced step 6, held at", "full step 4, held at")
    other = [
        line
        for line in lines
        if line and not line.startswith((*begins, *figures)) and "%|" not in line
    ]
    assert other == []


@pytest.mark.soak
def test_tensorboard_shows_a_resumed_run_once(stopped, tiny_dataset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ("--log.tensorboard", "true", "--stages.reduced.steps", "12")
    for keep in (6, None):
        ended = train(tmp_path / "run", tiny_dataset, "--checkpoint.keep", "9", *options)
        assert ended.code == 0, ended.output
        for path in (tmp_path / "run/checkpoints").glob("step-*"):
            if keep is not None and int(path.name[5:]) > keep:
                shutil.rmtree(path)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    shown = [event.step for event in events.Scalars("step/loss")]
    assert shown == [16 * step for step in range(1, 17)]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    logged = [e["samples_seen"] for e in map(json.loads, lines) if e["event"] == "step"]
    assert logged == shown


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    small_disk, tiny_dataset, tiny_evaluation_set, tmp_path
):
    folder, grow = small_disk
    ended = train(folder / "run", tiny_dataset, "--checkpoint.every_steps", "1")
    assert ended.code == 1
    assert "no space left" in ended.output and "make room" in ended.output, ended.output
    grow()
    assert train(folder / "run", tiny_dataset, "--checkpoint.every_steps", "1").code == 0
    undisturbed = tmp_path / "undisturbed"
    assert train(undisturbed, tiny_dataset, "--checkpoint.every_steps", "1").code == 0

    def losses(run_dir: Path) -> list[float]:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [e["loss"] for e in map(json.loads, lines) if e["event"] == "step"]

    assert losses(folder / "run") == losses(undisturbed)
