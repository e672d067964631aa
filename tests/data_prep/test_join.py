"""Several datasets are one without a copy, and are shown in the shares that are asked for."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import caption, encoded, options, picture, write_corpus
from forked_runs import train

from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from pretrain.batches.order import SampleOrder
from pretrain.dataset.manifest import read_manifest, read_token_counts
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import open_weights

SIZES = (30, 12)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets of other pictures, the second by the first one's tokenizer."""
    folder = tmp_path_factory.mktemp("join")
    found: list[Path] = []
    for number, size in enumerate(SIZES):
        seeds = range(100 * number, 100 * number + size)
        columns = {
            "image": [encoded(picture(seed)) for seed in seeds],
            "caption": [caption(seed) for seed in seeds],
        }
        source = write_corpus(folder / f"{number}.parquet", columns)
        tokenizer = found[0] / "tokenizer.model" if found else None
        build_dataset(
            options(source, folder / str(number), tiers="48:90,full:90", shard_samples=7,
                    tokenizer=tokenizer)
        )  # fmt: skip
        found.append(folder / str(number))
    return found


def join(out: Path, sources: list[Path], *more: str) -> int:
    words = [word for source in sources for word in ("--source", str(source))]
    return data_prep(["join", str(out), *words, *more])


def test_all_samples_are_there_in_order_and_no_picture_was_copied(sources, tmp_path, capsys):
    assert join(tmp_path / "all", sources) == 0
    for tier in ("48", "full"):
        joined = Dataset(tmp_path / "all", tier)
        apart = [Dataset(source, tier) for source in sources]
        assert len(joined) == sum(SIZES)
        row = 0
        for one in apart:
            for own in range(len(one)):
                ours, theirs = joined.read(row), one.read(own)
                assert ours.jpeg == theirs.jpeg and (ours.ids == theirs.ids).all()
                assert joined.read_json(row) == one.read_json(own)
                row += 1
        inodes = [
            {Path(file).stat().st_ino for file in (*one.shards, *one.pictures)}
            for one in (joined, *apart)
        ]
        assert inodes[0] == inodes[1] | inodes[2]
    counts = [read_token_counts(one, read_manifest(one)) for one in (tmp_path / "all", *sources)]
    assert (counts[0] == counts[1] + counts[2]).all()
    capsys.readouterr()
    assert data_prep(["verify", str(tmp_path / "all")]) == 0


@pytest.mark.parametrize("shares", [(0.3, 0.7), (1.0, 0.0), (5.0, 1.0)])
def test_each_source_is_shown_in_its_share(sources, tmp_path, shares):
    more = [word for share in shares for word in ("--share", str(share))]
    assert join(tmp_path / "mix", sources, *more, "--target", "60") == 0
    weights = open_weights(tmp_path / "mix", "mix", read_manifest(tmp_path / "mix"))
    order = SampleOrder(samples=sum(SIZES), seed=1, weights=weights)
    assert order.epoch_samples == 60
    epochs = 200
    rows = order.rows(np.arange(60 * epochs))
    shown = Counter((rows < SIZES[0]).tolist())
    # A sample comes floor or ceil of its weight an epoch, so a source is off by one at most.
    assert abs(shown[True] - 60 * epochs * shares[0] / sum(shares)) <= epochs
    each = np.bincount(rows, minlength=sum(SIZES)) / epochs
    wanted = [60 * share / sum(shares) / size for share, size in zip(shares, SIZES, strict=True)]
    for weight, own in zip(wanted, np.split(each, [SIZES[0]]), strict=True):
        assert abs(own.mean() - weight) < 0.05 and (own == 0).all() == (weight == 0)


@pytest.mark.soak
def test_a_run_trains_on_the_mix(sources, tmp_path):
    assert join(tmp_path / "mix", sources, "--share", "1", "--share", "2") == 0
    ended = train(tmp_path / "run", tmp_path / "mix", "--data.weights", "mix")
    assert ended.code == 0, ended.output


def test_what_does_not_fit_is_one_line_and_what_was_begun_is_made_anew(sources, tmp_path, capsys):
    other = tmp_path / "other"
    source = write_corpus(
        tmp_path / "other.parquet",
        {"image": [encoded(picture(7))], "caption": ["another vocabulary altogether"]},
    )
    build_dataset(options(source, other, tiers="48:90,full:90"))
    cut = tmp_path / "cut"
    shutil.copytree(sources[1], cut)
    (cut / "full" / "00001.tar").write_bytes(b"short")
    for wrong, more, message in (
        ([sources[0], other], (), f"{other} has tokenizer"),
        ([sources[0]], (), "give at least two"),
        (sources, ("--target", "9"), "--target=9: does nothing without --share"),
        (sources, ("--share", "1"), "one number of at least 0 for each of the 2 sources"),
        ([sources[0], cut], (), "00001.tar is missing or has another size"),
        ([sources[0], tmp_path / "nothing"], (), "nothing"),
    ):
        assert join(tmp_path / "out", wrong, *more) == 2, message
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert join(tmp_path / "out", sources) == 0
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert join(tmp_path / "out", sources) == 0
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before
    assert join(tmp_path / "out", sources[::-1]) == 2
    assert "is a finished dataset of other sources" in capsys.readouterr().err
    assert join(tmp_path / "out", sources, "--share", "1", "--share", "3") == 0
    weights = open_weights(tmp_path / "out", "mix", read_manifest(tmp_path / "out"))
    assert weights.epoch_samples == sum(SIZES)


def test_two_joins_at_once_end_well_or_are_told_who_is_at_work(sources, tmp_path):
    words = [word for source in sources for word in ("--source", str(source))]
    command = [sys.executable, "-m", "data_prep", "join", str(tmp_path / "all"), *words]
    joins = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate()[1] for process in joins]
    codes = [process.returncode for process in joins]
    assert set(codes) <= {0, 2} and 0 in codes, told
    refused = [text for text in told if text]
    assert all("is held by" in text or "is finished" in text for text in refused), told
    assert len(Dataset(tmp_path / "all", "full")) == sum(SIZES)
    assert not (tmp_path / "all" / "lock").exists()
