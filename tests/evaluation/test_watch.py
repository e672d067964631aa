"""Checkpoints judged by another job: training's own figures, each once, whatever happens."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import evaluate
from forked_runs import trained
from tiny_runs import ROOT, evaluation_options, train_command

from pretrain.base.run_files import METRICS_FILE, RECIPE_FILE, WATCHED_FILE
from pretrain.report.curves import curves
from pretrain.report.run_folder import Run, read_run
from pretrain.run.checkpoint import read_weights

STEPS = [2, 4, 6, 8, 10]


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained_figures(run: Path) -> dict[int, dict]:
    """Training's own evaluations at the lengths of the stage that it was in, by step."""
    events = [one for one in records(run / METRICS_FILE) if one["event"] == "evaluation"]
    return {one["step"]: one["figures"] for one in events if one["tokens"] == one["stage"]}


def watch_command(run: Path, *more: str, ranks: int = 1) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*launcher, "-m", "pretrain.evaluate", "--watch", str(run), "--poll_s", "0.2", *more]


@pytest.fixture(autouse=True)
def no_place(monkeypatch):
    """What an evaluation in this process says of its rank is not for those that it starts."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # put back at the end, whatever was set meanwhile
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def run_at_zero_3(tiny_dataset, tiny_evaluation_set, tmp_path_factory) -> Path:
    """A finished run of two ranks at ZeRO 3 that kept a checkpoint of each evaluated step."""
    run = tmp_path_factory.mktemp("watched") / "run"
    more = ["--engine.ds_config", str(ROOT / "ds_configs/zero3.json")]
    more += ["--checkpoint.every_steps", "2", "--checkpoint.keep", "9"]
    more += evaluation_options(tiny_evaluation_set)
    trained(run, tiny_dataset, *more, ranks=2)
    return run


@pytest.fixture
def run(run_at_zero_3, tmp_path) -> Path:
    return Path(shutil.copytree(run_at_zero_3, tmp_path / "run"))


def test_every_checkpoint_has_the_figures_of_training(run, capsys):
    evaluate(watch=run, poll_s=0.2)
    found = records(run / WATCHED_FILE)
    assert [one["step"] for one in found] == STEPS[::-1]  # the newest first
    assert [one["samples_seen"] for one in found] == [16 * step for step in STEPS[::-1]]
    expected = trained_figures(run)
    assert sorted(expected) == STEPS
    assert {one["step"]: one["figures"] for one in found} == expected
    assert "the run has ended, and all its checkpoints are judged: 5" in capsys.readouterr().out
    before = (run / WATCHED_FILE).read_bytes()
    evaluate(watch=run, poll_s=0.2)
    assert (run / WATCHED_FILE).read_bytes() == before


@pytest.mark.soak
def test_two_ranks_that_were_killed_go_on_without_judging_twice(run):
    out = run / WATCHED_FILE
    first = subprocess.Popen(watch_command(run), cwd=ROOT)
    while not (out.is_file() and out.read_bytes().count(b"\n")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with out.open("ab") as file:
        file.write(b'{"event": "evalua')  # what a kill during the write leaves
    subprocess.run(watch_command(run, ranks=2), cwd=ROOT, check=True)
    found = records(out)
    assert sorted(one["step"] for one in found) == STEPS
    assert {one["step"]: one["figures"] for one in found} == trained_figures(run)


@pytest.mark.soak
def test_it_follows_a_training_run_to_its_end(tiny_dataset, tiny_evaluation_set, tmp_path):
    """Training keeps one checkpoint only, so that it removes them under the watcher."""
    run = tmp_path / "run"
    more = ["--checkpoint.every_steps", "2", "--checkpoint.keep", "1"]
    more += evaluation_options(tiny_evaluation_set)
    training = subprocess.Popen(train_command(run, tiny_dataset, *more), cwd=ROOT)
    while not (run / RECIPE_FILE).is_file():
        assert training.poll() is None
        time.sleep(0.05)
    watcher = subprocess.run(watch_command(run), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert (watcher.returncode, training.wait()) == (0, 0), watcher.stdout
    assert "the run has ended" in watcher.stdout
    found = records(run / WATCHED_FILE)
    steps = [one["step"] for one in found]
    assert steps == sorted(set(steps)) and steps[-1] == 10
    expected = trained_figures(run)
    assert {one["step"]: one["figures"] for one in found} == {
        step: expected[step] for step in steps
    }


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_failure(run, capsys):
    checkpoint = run / "checkpoints" / "step-00000008"
    next(checkpoint.glob("*.safetensors")).unlink()  # as a removal goes on
    with pytest.raises(FileNotFoundError):
        read_weights(checkpoint)
    removal = threading.Timer(2.0, shutil.rmtree, [checkpoint])
    removal.start()
    evaluate(watch=run, poll_s=0.2)
    assert [one["step"] for one in records(run / WATCHED_FILE)] == [10, 6, 4, 2]
    assert "left out" not in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_left_out(run, capsys):
    recipe = (run / RECIPE_FILE).read_text()
    assert "late_files_s: 60" in recipe
    (run / RECIPE_FILE).write_text(recipe.replace("late_files_s: 60", "late_files_s: 0"))
    share = next((run / "checkpoints" / "step-00000008").glob("*.safetensors"))
    content = bytearray(share.read_bytes())
    content[-1] ^= 1
    share.write_bytes(content)
    evaluate(watch=run, poll_s=0.2)
    told = capsys.readouterr().out
    assert f"{share.name} differs from its checksum" in told
    assert "left out: ['step-00000008']" in told
    assert [one["step"] for one in records(run / WATCHED_FILE)] == [10, 6, 4, 2]


def test_points_of_the_watcher_are_drawn_among_training_s_own(run):
    whole = read_run(run)
    lines = (run / METRICS_FILE).read_text().splitlines()
    kept = [line for line in lines if '"evaluation"' not in line or '"step": 10' in line]
    (run / METRICS_FILE).write_text("".join(line + "\n" for line in kept))
    without = read_run(run)
    evaluate(watch=run, poll_s=0.2)
    after = read_run(run)
    assert not after.notes
    for name in ("image → text, reduced", "text → image, reduced"):
        assert [at for _, at in dots(without, name)] == ["160"]
        assert [at for _, at in dots(after, name)] == ["32", "64", "96", "160"]
        assert dots(after, name) == dots(whole, name)


def dots(run: Run, name: str) -> list[tuple[str, str]]:
    """(rate, samples) of every dot of a line of the held-out set's recalls, as its tips say."""
    chart = next(chart for chart in curves(run) if chart.title == "R@1, held out")
    return re.findall(rf">{name}: ([\d.]+ %) at (\d+) samples<", str(chart.drawing))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": Path("runs/other")}, ["--model runs/other", "--watch", "give one of them"]),
        ({"stage": "full"}, ["--watch", "--stage"]),
        ({"poll_s": 0.0}, ["poll_s=0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_answered_on_one_line(run, capsys, options, named):
    with pytest.raises(SystemExit) as stopped:
        evaluate(**{"watch": run, **options})
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert all(word in told for word in named), told


def test_another_watcher_or_another_file_is_refused(run, capsys):
    other = run / "figures.json"
    other.write_text('{"held_out": 1}')
    with pytest.raises(SystemExit):
        evaluate(watch=run, out=other)
    assert "give another --out" in capsys.readouterr().err
    assert other.read_text() == '{"held_out": 1}'
    with (run / WATCHED_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            evaluate(watch=run)
    assert "another --watch" in capsys.readouterr().err
