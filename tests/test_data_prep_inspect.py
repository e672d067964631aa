"""`stats` and `inspect` say of a dataset what is in it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus
from dataset_copies import change_manifest

from data_prep.__main__ import main
from data_prep.build import build_dataset
from pretrain.data.dataset import Dataset

ROWS = 90


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, two captions of which every third sample has one, rejections."""
    folder = tmp_path_factory.mktemp("inspect")
    images = [encoded(picture(i, width=60 + i, height=72 + i % 7), "JPEG") for i in range(ROWS)]
    images[5], images[9] = b"no picture", encoded(picture(9, width=8, height=8))
    texts = [f"a red dog {'very ' * (i % 9)}number {i}" for i in range(ROWS)]
    images[19], texts[19] = images[20], texts[20]
    sentence = "A red dog jumps over the small house. The cat sleeps. It rains on the green hill!"
    source = write_corpus(
        folder / "corpus.parquet",
        {
            "image": images,
            "short": texts,
            "long": [None if i % 3 else f"{sentence} <b>{i}</b>" for i in range(ROWS)],
        },
    )
    build_dataset(
        options(
            *(source, folder / "out"),
            captions=("short={short}", "long={long}"),
            tiers="48:90,full:95",
            shard_samples=40,
        )
    )
    return folder / "out"


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def counted(dataset: Dataset, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, captions) tokens and (rows, 2) width and height, as training's reader finds them."""
    sizes = []
    for row in rows:
        member = dataset.index[row]
        with (dataset.directory / f"full/{member['shard']:05d}.tar").open("rb") as shard:
            shard.seek(member["json"]["offset"])
            told = json.loads(shard.read(member["json"]["size"]))
        sizes.append((told["width"], told["height"]))
    return dataset.index["tokens"][rows].astype(int), np.asarray(sizes)


@pytest.mark.parametrize("samples", [None, 10])
def test_stats_are_what_a_count_of_the_rows_gives(built, tmp_path, capsys, samples):
    file = tmp_path / "stats.json"
    more = [] if samples is None else ["--samples", str(samples)]
    assert main(["stats", str(built), "--json", str(file), *more]) == 0
    told = json.loads(file.read_text())
    dataset = Dataset(built, "full")
    count = len(dataset)
    step = count / (samples or count)
    rows = [int((i + 0.5) * step) for i in range(samples or count)]
    tokens, sizes = counted(dataset, rows)
    assert told["samples"] == count == ROWS - 3 and told["looked_at"] == len(rows)
    for name, values in (
        *(("width_px", sizes[:, 0]), ("height_px", sizes[:, 1])),
        *(("shorter_px", sizes.min(1)), ("aspect", np.round(sizes[:, 0] / sizes[:, 1], 2))),
    ):
        middle = np.quantile(values, 0.5, method="inverted_cdf")
        wanted = {"min": values.min(), "median": middle, "max": values.max()}
        assert told["pictures"][name] == wanted, name
    for column, name in enumerate(dataset.manifest.captions):
        lengths = tokens[:, column][tokens[:, column] > 0]
        figures = told["captions"][name]
        assert figures["samples"] == len(lengths)
        assert figures["mean"] == pytest.approx(lengths.mean())
        for share, value in figures["percentiles"].items():
            wanted = np.quantile(lengths, int(share[:-1]) / 100, method="inverted_cdf")
            assert value == wanted, (name, share)
        for context, share in figures["cut_at"].items():
            assert share == pytest.approx((lengths + 1 > int(context)).mean()), (name, context)
    used = {int(token) for row in range(count) for token in dataset.read_ids(row)}
    assert told["vocabulary"]["used"] == len(used) and told["vocabulary"]["of_all_samples"]
    assert told["vocabulary"]["ids"] == dataset.vocabulary.size
    assert told["rejected"] == dataset.manifest.rejected
    assert sum(told["rejected"].values()) == 3
    shards = [path.stat().st_size for path in (built / "48").glob("*.tar")]
    assert told["tiers"]["48"] == {"shortest_px": 48, "shards": len(shards), "bytes": sum(shards)}
    shown = capsys.readouterr().out
    assert "duplicate_key" in shown and f"3 of {ROWS} rows" in shown and "cut at 77" in shown


def test_a_dataset_without_counts_has_its_ids_counted(built, copied):
    (copied / "token_counts.npy").unlink()
    change_manifest(copied, lambda manifest: manifest.pop("token_counts"))
    for samples, is_whole in ((None, True), (10, False)):
        more = [] if samples is None else ["--samples", str(samples)]
        told = [copied.parent / "one.json", copied.parent / "other.json"]
        assert main(["stats", str(built), "--json", str(told[0])]) == 0
        assert main(["stats", str(copied), "--json", str(told[1]), *more]) == 0
        whole, counted_here = (json.loads(path.read_text())["vocabulary"] for path in told)
        assert (whole == counted_here) is is_whole
        assert counted_here["of_all_samples"] is is_whole
        assert 0 < counted_here["used"] <= whole["used"]


def test_damage_is_named_in_one_line(copied, capsys):
    (shard, *_) = sorted((copied / "48").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    place = content.index(b'"captions"')
    content[place] ^= 1
    shard.write_bytes(content)
    assert main(["stats", str(copied)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {shard}: the member at byte") and "copy the dataset" in error


def test_a_count_below_one_is_refused(built, capsys):
    assert main(["stats", str(built), "--samples", "0"]) == 2
    assert "--samples=0" in capsys.readouterr().err
