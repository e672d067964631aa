"""What a start reads is what was written: a stage's weights and state.json, or one line, or the
checkpoint before."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine_cases import small_clip
from forked_runs import TINY, train
from ranks import run_ranks
from safetensors.torch import load_file, save_file

from pretrain.export.command import export
from pretrain.models.positions import sincos_2d
from pretrain.recipe.parsing import parse, read_recipe
from pretrain.run.checkpoint import newest
from pretrain.subject import find_model

NOW = ("--checkpoint.keep", "9", "--checkpoint.late_files_s", "0")


def losses(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {e["step"]: e["loss"] for e in map(json.loads, lines) if e["event"] == "step"}


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset, tmp_path_factory) -> Path:
    """A run of 6 + 4 steps with all its checkpoints: at 3, 6 (a stage's end), 9 and 10."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = train(run_dir, tiny_dataset, *NOW)
    assert ended.code == 0, ended.output
    return run_dir


def standing(undisturbed: Path, folder: Path, step: int) -> Path:
    """A copy of the run as it was when its newest checkpoint was that of `step`."""
    run_dir = folder / "run"
    shutil.copytree(undisturbed, run_dir)
    for path in (run_dir / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (run_dir / "stages/full.safetensors").unlink()
    return run_dir


def assert_alike(run_dir: Path, undisturbed: Path) -> None:
    assert losses(run_dir) == losses(undisturbed)
    for name in ("reduced", "full"):
        file = f"stages/{name}.safetensors"
        if (run_dir / file).is_file():
            assert (run_dir / file).read_bytes() == (undisturbed / file).read_bytes(), name


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_the_tail(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-64] + bytes(64))


def take_another_run_s(path: Path) -> None:
    save_file({name: value + 0.01 for name, value in load_file(path).items()}, path)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [
    *(flip_a_bit, Path.unlink),
    *(
        pytest.param(damage, marks=pytest.mark.soak)
        for damage in (
            *(zero_the_tail, take_another_run_s, make_a_folder),
            lambda path: path.write_bytes(path.read_bytes()[:1000]),
        )
    ),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_of_the_stage_before_end_in_one_line_whose_remedy_works(
    undisturbed, tiny_dataset, tmp_path, damage: Callable[[Path], object]
):
    run_dir = standing(undisturbed, tmp_path, 6)
    file = run_dir / "stages/reduced.safetensors"
    damage(file)
    ended = train(run_dir, tiny_dataset, *NOW)
    assert ended.code == 2, ended.output
    (error,) = [line for line in ended.output.splitlines() if line.startswith("error:")]
    assert "Traceback" not in ended.output and str(file) in error
    assert f"remove {run_dir}/checkpoints/step-00000006" in error and "step-00000003" in error
    shutil.rmtree(run_dir / "checkpoints/step-00000006")
    if file.is_dir():
        file.rmdir()
    ended = train(run_dir, tiny_dataset, *NOW)
    assert ended.code == 0, ended.output
    assert_alike(run_dir, undisturbed)


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, *(pytest.param(x, marks=pytest.mark.soak) for x in (make_a_folder, Path.unlink))],
)
def test_inside_a_stage_the_weights_of_the_one_before_are_not_read(
    undisturbed, tiny_dataset, tmp_path, damage: Callable[[Path], object]
):
    run_dir = standing(undisturbed, tmp_path, 9)
    damage(run_dir / "stages/reduced.safetensors")
    ended = train(run_dir, tiny_dataset, *NOW)
    assert ended.code == 0, ended.output
    assert losses(run_dir) == losses(undisturbed)
    file = "stages/full.safetensors"
    assert (run_dir / file).read_bytes() == (undisturbed / file).read_bytes()


def loaded_late(rank: int, run_dir: Path) -> tuple[str, bool, float]:
    """(the refusal of a file that does not come, whether one that comes is read whole, seconds)"""
    from pretrain.base.faults import StoppedError
    from pretrain.losses.build import build_objective
    from pretrain.losses.options import LossOptions
    from pretrain.run.stage_weights import load_stage_weights, save_stage_weights, stage_file

    written, objective = small_clip(), build_objective(LossOptions())
    file, hidden = stage_file(run_dir, "few"), run_dir / "hidden"
    told = [None]
    if rank == 0:
        told = [save_stage_weights(run_dir, "few", written.state_dict(), objective)]
        file.rename(hidden)
    torch.distributed.broadcast_object_list(told, src=0)
    model = small_clip()
    for value in model.parameters():
        value.data.zero_()
    with pytest.raises(StoppedError, match=r"late_files_s=0\.2") as refusal:
        load_stage_weights(run_dir, "few", told[0], model, objective, late_files_s=0.2)
    torch.distributed.barrier()
    if rank == 0:
        threading.Timer(1.0, hidden.rename, [file]).start()
    begin = time.monotonic()
    load_stage_weights(run_dir, "few", told[0], model, objective, late_files_s=60)
    same = all(
        torch.equal(a, b) for a, b in zip(model.parameters(), written.parameters(), strict=True)
    )
    return str(refusal.value), same, time.monotonic() - begin


def test_weights_that_another_rank_wrote_are_waited_for(tmp_path):
    for refusal, same, seconds in run_ranks(loaded_late, 2, tmp_path):
        assert "few.safetensors is missing" in refusal and "\n" not in refusal
        assert same and 0.5 < seconds < 30


def forged(text: str, **values: object) -> str:
    """A record with other numbers, and the right digest."""
    from pretrain.run.record import CheckpointRecord, FileSum, RunState

    plain = json.loads(text)
    state = {name: value for name, value in plain["state"].items() if name != "stage_weights"}
    sums = {name: FileSum(**its) for name, its in plain["state"]["stage_weights"].items()}
    files = {name: FileSum(**its) for name, its in plain["files"].items()}
    whole = RunState(**state, stage_weights=sums)
    record = CheckpointRecord(state=whole, fixed=plain["fixed"], files=files)
    assert record.to_json() == text
    return dataclasses.replace(record, state=dataclasses.replace(whole, **values)).to_json()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"stage_step": 3', '"stage_step": 2'),
        lambda text: text.replace('"samples_seen": 144', '"samples_seen": 152'),
        lambda text: text.replace('"steps": 4', '"steps": 5'),
        lambda text: text[: len(text) // 2],
        lambda text: "null",
        lambda text: "[]",
        lambda text: '{"state": {"step": NaN}}',
        lambda text: "[" * 100_000,
        lambda text: '{"state":' * 100_000,
        lambda text: "\udcff",
        lambda text: forged(text, stage=9),
        lambda text: forged(text, stage=-1),
        lambda text: forged(text, samples_seen=152),
        lambda text: forged(text, step=8),
        lambda text: forged(text, stage_step=5, step=11, samples_seen=176),
        lambda text: forged(text, stage_weights={}),
        lambda text: forged(text, skipped="3"),
        lambda text: forged(text, step=float("nan")),
    ],
)
def test_a_damaged_or_forged_state_is_damage_and_the_checkpoint_before_is_used(
    undisturbed, tmp_path, capsys, change: Callable[[str], str]
):
    run_dir = standing(undisturbed, tmp_path, 9)
    path = run_dir / "checkpoints/step-00000009/state.json"
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_bytes(changed.encode("utf-8", "surrogateescape"))
    found = newest(run_dir / "checkpoints", late_files_s=0)
    assert found is not None and found.state.step == 6
    (said,) = capsys.readouterr().out.splitlines()
    assert "step-00000009 is damaged" in said


def test_a_run_goes_on_from_before_a_damaged_state_as_one_that_nothing_happened_to(
    undisturbed, tiny_dataset, tmp_path
):
    run_dir = standing(undisturbed, tmp_path, 9)
    path = run_dir / "checkpoints/step-00000009/state.json"
    path.write_text(path.read_text().replace('"stage_step": 3', '"stage_step": 2'))
    ended = train(run_dir, tiny_dataset, *NOW)
    assert ended.code == 0 and "step-00000009 is damaged" in ended.output, ended.output
    assert_alike(run_dir, undisturbed)


def test_another_version_is_named_with_its_remedy(undisturbed, tiny_dataset, tmp_path):
    from pretrain.run.record import read_record

    run_dir = standing(undisturbed, tmp_path, 9)
    path = run_dir / "checkpoints/step-00000009"
    other = dataclasses.replace(read_record(path), format_version=7)
    (path / "state.json").write_text(other.to_json())
    ended = train(run_dir, tiny_dataset, *NOW)
    (error,) = [line for line in ended.output.splitlines() if line.startswith("error:")]
    assert ended.code == 2 and "Traceback" not in ended.output
    assert "format version 7, this code reads 1" in error and "pretrain.train" in error


def test_weights_that_changed_are_neither_evaluated_nor_exported(tiny_run, tmp_path):
    """One bit of a finished run's stage; the whole file of another run."""
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    assert find_model(run_dir, "full").model.embed_dim == 32
    path = run_dir / "stages/full.safetensors"
    whole = path.read_bytes()
    other = bytearray(whole)
    other[-5] ^= 1
    for content in (bytes(other), (run_dir / "stages/reduced.safetensors").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"full\.safetensors differ from the sha256 .* back"):
            find_model(run_dir, "full")
        with pytest.raises(ValueError, match="differ from the sha256"):
            export(read_recipe(run_dir), "full", tmp_path / "out", "native")
        assert not (tmp_path / "out").exists()
    shutil.rmtree(run_dir / "checkpoints")
    path.write_bytes(whole)
    find_model(run_dir, "full")


def test_fixed_positions_are_learned_from_where_a_stage_says_so(tiny_dataset, tmp_path):
    options = ("--model.image.positions", "learned_from_sincos", "--engine.precision", "fp32")
    ended = train(
        tmp_path / "run", tiny_dataset, *options, "--stages.reduced.fixed_positions", "true"
    )
    assert ended.code == 0, ended.output
    tables = [
        load_file(tmp_path / f"run/stages/{stage}.safetensors")["image.positions"]
        for stage in ("reduced", "full")
    ]
    # 32 px, then 48 px, in patches of 8: clipa_torch's tuning begins at the resized table.
    fixed = sincos_2d(32, 4)
    assert torch.equal(tables[0], fixed)
    square = fixed.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(6, 6), mode="bicubic", antialias=True)
    moved = (tables[1] - resized[0].permute(1, 2, 0).reshape(36, 32)).abs()
    # Four steps of AdamW at a peak of 8e-3 x 16 / 256 = 5e-4.
    assert 1e-5 < float(moved.max()) < 4 * 5e-4, float(moved.max())


def test_positions_that_are_no_table_cannot_be_fixed_by_a_stage():
    tiny = ["--config", str(TINY), "--stages.reduced.fixed_positions", "true"]
    with pytest.raises(ValueError, match=r"stages\.reduced\.fixed_positions=True with") as refusal:
        parse(tiny)
    assert "learned_from_sincos" in str(refusal.value) and "\n" not in str(refusal.value)
    table = ["--model.image.positions", "learned"]
    with pytest.raises(ValueError, match="as random as it begins"):
        parse([*tiny, *table])
    with pytest.raises(ValueError, match="leave one of them out"):
        parse(
            [*tiny, "--model.image.positions=learned_from_sincos", "--stages.reduced.locked=image"]
        )


@pytest.mark.parametrize("name", ["../../x", "", "a.b", "a b", "ä", "<b>", "a\n", "/x"])
def test_a_stage_s_name_is_no_path(tmp_path, name):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TINY.read_text().replace("  full:\n", f"  {json.dumps(name)}:\n"))
    with pytest.raises(ValueError, match="use letters, digits, _ and -") as refusal:
        parse(["--config", str(recipe), "--run_dir", str(tmp_path), "--data.train", "x"])
    assert repr(name) in str(refusal.value) and "\n" not in str(refusal.value)
