"""Weights: a sample is shown as often as it weighs, drawn anew each epoch, and checked first."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dataset_copies import change_manifest, keep_weights
from forked_runs import train

from data_prep.__main__ import main as data_prep
from pretrain.batches.order import SampleOrder
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import SampleWeights, open_weights


def some_weights(rows: int) -> np.ndarray:
    draws = np.random.default_rng(0)
    weights = draws.choice([0, 0.25, 1, 2.5, 7], rows) + draws.choice([0, 0.125], rows)
    return weights.astype(np.float32)


def epochs(weights: np.ndarray, count: int) -> np.ndarray:
    """(count, rows) how often each row comes in each epoch."""
    order = SampleOrder(samples=len(weights), seed=5, weights=SampleWeights(weights))
    each = order.epoch_samples
    rows = order.rows(np.arange(count * each)).reshape(count, each)
    return np.stack([np.bincount(one, minlength=len(weights)) for one in rows])


def test_each_row_comes_floor_or_ceil_of_its_weight_every_epoch():
    weights = some_weights(60_001)
    weights[-1] += -np.float32(weights.sum(dtype=np.float64) % 1) + 1  # a whole number in all
    counts = epochs(weights, 3)
    assert (counts.sum(1) == weights.sum(dtype=np.float64)).all()
    assert (counts >= np.floor(weights)).all() and (counts <= np.ceil(weights)).all()
    assert (counts[:, weights == 0] == 0).all()
    assert (counts[0] != counts[1]).any() and (counts[1] != counts[2]).any()


def test_a_sum_that_is_no_whole_number_costs_less_than_one_sample():
    weights = some_weights(60_001)
    weights[:3] = 0.3
    counts = epochs(weights, 3)
    assert (counts.sum(1) == round(float(weights.sum(dtype=np.float64)))).all()
    outside = (counts < np.floor(weights)) | (counts > np.ceil(weights))
    assert (outside.sum(1) <= 1).all()


def test_over_many_epochs_a_row_comes_as_often_as_it_weighs():
    weights = some_weights(500)
    mean = epochs(weights, 2000).mean(0)
    assert np.abs(mean - weights).max() < 5 * 0.5 / 2000**0.5, np.abs(mean - weights).max()


def test_weights_of_one_show_each_row_once_as_without_weights():
    weighted = SampleOrder(samples=5000, seed=2, weights=SampleWeights(np.ones(5000, np.float32)))
    plain = SampleOrder(samples=5000, seed=2)
    assert (weighted.rows(np.arange(10_000)) == plain.rows(np.arange(10_000))).all()


def test_any_piece_of_a_weighted_stream_equals_the_whole():
    weights = some_weights(30_000)
    order = SampleOrder(samples=30_000, seed=0, weights=SampleWeights(weights))
    whole = order.rows(np.arange(2 * order.epoch_samples))
    for piece in (np.arange(order.epoch_samples - 9, order.epoch_samples + 9), np.array([7, 3])):
        again = SampleOrder(samples=30_000, seed=0, weights=SampleWeights(weights))
        assert (again.rows(piece) == whole[piece]).all()


def test_substitutes_are_drawn_by_the_weights():
    weights = np.zeros(20_000, np.float32)
    weights[[3, 9_000, 19_999]] = 1, 2, 1
    picked = SampleWeights(weights).pick(np.random.default_rng(0).random(40_000))
    rows, counts = np.unique(picked, return_counts=True)
    assert rows.tolist() == [3, 9_000, 19_999]
    assert np.allclose(counts / 10_000, [1, 2, 1], rtol=0.05)


TEN: Any = SimpleNamespace(samples=10, fingerprint="")  # a manifest's part that counts here


def store(dataset: Path, name: str, values: np.ndarray) -> Path:
    (dataset / "weights").mkdir(exist_ok=True)
    np.save(dataset / "weights" / f"{name}.npy", values)
    return dataset / "weights" / f"{name}.npy"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (np.ones(9, np.float32), r"shape \(9,\).*float32 of \(10,\)"),
        (np.ones(10), "float64"),
        (np.array([1] * 7 + [np.nan, 1, 1], np.float32), "nan in row 7"),
        (np.array([1, -2] + [1] * 8, np.float32), "-2.0 in row 1"),
        (np.array([1, np.inf] + [1] * 8, np.float32), "inf in row 1"),
        (np.zeros(10, np.float32), "only zeros"),
    ],
)
def test_wrong_weights_are_named_in_one_line(tmp_path, values, named):
    path = store(tmp_path, "some", values)
    with pytest.raises(ValueError, match=named) as raised:
        open_weights(tmp_path, "some", TEN)
    for word in ("data.weights='some'", str(path)):
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_that_are_missing_or_no_array_or_elsewhere_are_named(tmp_path):
    store(tmp_path, "some", np.ones(10, np.float32)).with_name("text.npy").write_text("no array")
    with pytest.raises(FileNotFoundError, match=r"data\.weights='other'.*\['some', 'text'\]"):
        open_weights(tmp_path, "other", TEN)
    with pytest.raises(ValueError, match=r"data\.weights='text'.*not a NumPy file"):
        open_weights(tmp_path, "text", TEN)
    with pytest.raises(ValueError, match=r"data\.weights='\.\./some'"):
        open_weights(tmp_path, "../some", TEN)


@pytest.mark.soak
def test_a_run_trains_by_weights_and_other_weights_are_refused_at_a_resume(copy, tmp_path):
    weights = np.zeros(230, np.float32)
    weights[:20] = 1.5
    keep_weights(copy, "few", weights)
    options = ("--data.weights", "few", "--checkpoint.keep", "9")
    ended = train(tmp_path / "run", copy, *options)
    assert ended.code == 0, ended.output
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000010")  # so it stands inside a stage
    again = train(tmp_path / "run", copy)
    assert again.code == 2 and "data.weights=None (was few)" in again.output, again.output
    weights[0] = 3
    keep_weights(copy, "few", weights)
    again = train(tmp_path / "run", copy, *options)
    assert again.code == 2 and "was trained with other weights" in again.output
    weights[0] = 1.5
    keep_weights(copy, "few", weights)
    again = train(tmp_path / "run", copy, *options)
    assert again.code == 0, again.output
    small = train(tmp_path / "small", copy, *options, "--stages.full.global_batch_samples", "32")
    assert small.code == 2 and "has 30 samples" in small.output


def test_weights_of_another_state_of_the_dataset_are_none(copy, tmp_path, capsys):
    own = some_weights(230)
    np.save(tmp_path / "own.npy", own)
    weigh_own = ["weigh", str(copy), "--file", str(tmp_path / "own.npy"), "--out", "own"]
    assert data_prep(weigh_own) == 0
    assert f"{own.sum(dtype=np.float64):,.0f} samples shown" in capsys.readouterr().out
    manifest = read_manifest(copy)
    open_weights(copy, "own", manifest)
    assert data_prep(["verify", str(copy)]) == 0
    # A dataset of as many rows in its place, as a build that overwrites leaves it.
    change_manifest(copy, lambda m: m["provenance"].update(source="another"))
    other = read_manifest(copy)
    assert other.samples == manifest.samples
    with pytest.raises(ValueError, match=r"data\.weights='own'.* from another version of .* again"):
        open_weights(copy, "own", other)
    for command in (
        ["dedup", str(copy), "--weights", "own", "--out", "w"],
        ["verify", str(copy)],
    ):
        capsys.readouterr()
        assert data_prep(command) == (1 if command[0] == "verify" else 2)
        told = capsys.readouterr()
        assert "weights/own.npy was made from another version" in told.out + told.err
    assert data_prep(weigh_own) == 0
    open_weights(copy, "own", other)
    np.save(copy / "weights/own.npy", own + 1)
    with pytest.raises(ValueError, match=r"the sha256 of .*own\.npy is not that of own\.json"):
        open_weights(copy, "own", other)
    (copy / "weights/own.json").unlink()
    with pytest.raises(ValueError, match=r"own\.json does not say which .*weigh .* --file"):
        open_weights(copy, "own", other)


def weigh(dataset: Path, *more: str) -> int:
    return data_prep(["weigh", str(dataset), "--by", "artist", *more])


def test_weigh_shows_groups_by_the_rule(copy, capsys):
    assert weigh(copy, "--alpha", "0.5", "--target", "400", "--out", "by-artist") == 0
    table = capsys.readouterr().out
    data = Dataset(copy, "full")
    artists = np.array([data.read_json(row)["meta"]["artist"] for row in range(len(data))])
    weights = np.load(copy / "weights/by-artist.npy")
    assert weights.dtype == np.float32 and abs(weights.sum() - 400) < 1e-2
    names, counts = np.unique(artists, return_counts=True)
    assert len(names) == 2
    shown = np.array([weights[artists == name].sum() for name in names])
    assert np.allclose(shown, 400 * counts**0.5 / (counts**0.5).sum(), rtol=1e-5)
    for name, count in zip(names, counts, strict=True):
        assert len(set(weights[artists == name])) == 1
        assert any(f'"{name}"' in line and str(count) in line for line in table.splitlines())
    assert SampleWeights(weights).epoch_samples == 400
    open_weights(copy, "by-artist", data.manifest)


def test_alpha_of_one_is_as_often_as_without_weights(copy):
    assert weigh(copy, "--alpha", "1", "--out", "plain") == 0
    assert np.allclose(np.load(copy / "weights/plain.npy"), 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--by", "painter", "--out", "x"], "--by painter"),
        (["--out", "../x"], "--out='../x'"),
        (["--out", "x", "--target", "0"], "--target=0"),
        (["--out", "x", "--alpha", "-1"], "--alpha=-1"),
        (["--out", "x", "--seed", "1"], "--seed=1: does nothing beside --by=artist"),
        (["--out", "x", "--starts", "2"], "--starts=2: does nothing beside --by=artist"),
    ],
)
def test_a_wrong_request_to_weigh_is_one_line(copy, capsys, options, named):
    assert weigh(copy, *options) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and named in errors and "\n" not in errors
    assert not (copy / "weights").exists()


@pytest.mark.parametrize("kind", ["<f8", "<f2", ">f4", "<i8", "u1", "<f4"])
def test_own_weights_may_be_any_numbers(copy, tmp_path, kind):
    own = (np.arange(230) % 5).astype(kind)
    np.save(tmp_path / "own.npy", own)
    own_weights = ["weigh", str(copy), "--file", str(tmp_path / "own.npy"), "--out", "own"]
    assert data_prep(own_weights) == 0
    found = np.load(copy / "weights/own.npy")
    assert found.dtype == np.dtype("<f4") and (found == own).all()


OWN = np.ones(230)
WRONG: dict[str, tuple[np.ndarray | None, list[str], str]] = {
    "alpha": (OWN, ["--alpha", "0.3"], "--alpha=0.3: does nothing beside --file"),
    "target": (OWN, ["--target", "9", "--seed", "1"], "--target=9, --seed=1: does nothing"),
    "no such file": (None, [], "No such file"),
    "a folder": (None, ["--file", "/"], "--file=/: / cannot be read"),
    "beyond float32": (np.full(230, 1e300), [], "inf in row 0"),
    "negative": (np.full(230, -1), [], "-1.0 in row 0"),
    "no numbers": (np.full(230, "a"), [], "<U1"),
    "truths": (np.full(230, True), [], "bool"),
}


@pytest.mark.parametrize("case", WRONG)
def test_own_weights_that_do_not_fit_are_named_in_one_line(copy, tmp_path, capsys, case):
    values, more, named = WRONG[case]
    if values is not None:
        np.save(tmp_path / "own.npy", values)
    asked = ["weigh", str(copy), "--file", str(tmp_path / "own.npy"), "--out", "own", *more]
    assert data_prep(asked) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert "--file" in error and named in error, error
    assert not (copy / "weights").exists()
