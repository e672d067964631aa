"""Deduplication: groups, evaluation pictures and captions against independent answers."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import caption, encoded, options, picture, write_corpus
from dataset_copies import keep_weights
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from data_prep.dedup.hashes import picture_views
from data_prep.dedup.repeats import over_cap
from pretrain.batches.order import SampleOrder
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.sample_weights import open_weights


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory) -> tuple[Path, Path]:
    """Training: 30 pictures (0-29), then copies of 0-4 at quality 40, two flat ones. Evaluation:
    10 pictures, of which 25-29 re-encoded. The first ten samples share a caption but for case."""
    folder = tmp_path_factory.mktemp("dedup")
    pictures = [picture(seed, width=160, height=120) for seed in range(30)]
    train = [encoded(one) for one in pictures]
    train += [encoded(one, "JPEG", quality=40) for one in pictures[:5]]
    train += [encoded(Image.new("RGB", (160, 120), shade)) for shade in ("white", "grey")]
    texts = [["Red  dog", "red dog"][i % 2] for i in range(10)] + [caption(i) for i in range(27)]
    held = [encoded(picture(seed, width=160, height=120)) for seed in range(50, 55)]
    held += [encoded(one, "JPEG", quality=40) for one in pictures[25:]]
    for name, images, captions in (("train", train, texts), ("held", held, texts[10:20])):
        corpus = write_corpus(folder / f"{name}.parquet", {"image": images, "caption": captions})
        tokenizer = folder / "train/tokenizer.model" if name == "held" else None
        build_dataset(options(corpus, folder / name, tokenizer=tokenizer, tagger="none"))
    return folder / "train", folder / "held"


@pytest.fixture
def copies(two_sets, tmp_path) -> tuple[Path, Path]:
    """Both sets once more, without hashes and weights."""
    return tuple(Path(shutil.copytree(one, tmp_path / one.name)) for one in two_sets)


def dedup(dataset: Path, *more: str) -> int:
    return data_prep(["dedup", str(dataset), "--out", "w", "--workers", "1", *more])


def left_out(dataset: Path) -> set[int]:
    return set(np.flatnonzero(np.load(dataset / "weights/w.npy") == 0).tolist())


def test_duplicates_evaluation_pictures_and_captions_are_counted_and_left_out(copies, capsys):
    train, held = copies
    more = ("--against", str(held), "--caption-cap", "2", "--caption-name", "caption")
    assert dedup(train, *more) == 0
    assert left_out(train) == {*range(2, 10), *range(25, 35)}
    lines = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.strip().splitlines())
    told = {label.strip(): value.strip() for label, value in lines.items()}
    assert told["near duplicates"] == "5 in 5 groups, the largest of 2"
    assert told[f"contaminated by {held}"] == "5"
    assert (told["over the caption cap"], told["flat, not compared"]) == ("8", "2")
    assert (told["samples"], told["kept"]) == ("37", "19 (51.4%)")
    assert dedup(train) == 0
    assert left_out(train) == set(range(30, 35))


def test_the_page_shows_each_pair_with_its_difference_and_loads_nothing(copies, tmp_path):
    train, held = copies
    pages = [tmp_path / "one.html", tmp_path / "other.html"]
    for page in pages:
        assert dedup(train, "--against", str(held), "--page", str(page)) == 0
    text = pages[0].read_text()
    assert "<script" not in text and 'src="http' not in text
    assert text == pages[1].read_text()
    found = [int(word) for word in re.findall(r">difference (\d+)<", text)]
    assert len(found) == 5 and max(found) <= 18  # no group is shown twice
    near = [int(word) for word in re.findall(r">train, difference (\d+)<", text)]
    assert len(near) == 5 and max(near) <= 18
    # Four groups of two, one group of two, five pairs with an evaluation picture.
    assert text.count("<img") == 2 * (4 + 1 + 5)
    assert (
        "<pre" not in text
        and "nowhere by more than 18 levels." in text
        and "Nearly one colour" in text
    )
    assert text.count("<h2>") == 3
    assert dedup(held, "--page", str(pages[0])) == 0
    assert "<h2>" not in pages[0].read_text()  # no two of them are near: no empty section


def test_weights_are_multiplied_and_those_of_zero_stand_for_nothing(copies):
    train, _ = copies
    base = np.arange(37, dtype=np.float32) / 4
    keep_weights(train, "base", base)
    assert dedup(train, "--weights", "base", "--caption-cap", "1") == 0
    expected = base.copy()
    expected[31:35] = 0  # 30 stands for its original, which was never shown
    expected[2:10] = 0
    assert (np.load(train / "weights/w.npy") == expected).all()


def test_a_training_order_never_shows_what_is_left_out(copies):
    train, held = copies
    assert dedup(train, "--against", str(held)) == 0
    weights = open_weights(train, "w", read_manifest(train))
    order = SampleOrder(samples=37, seed=3, weights=weights)
    assert order.epoch_samples == 27
    shown = order.rows(np.arange(40 * 27))
    assert set(shown.tolist()) == set(range(37)) - left_out(train)


def test_the_files_do_not_depend_on_the_workers(copies, monkeypatch, capfd):
    train, held = copies
    written = []
    for workers in ("1", "2"):
        more = ("--workers", workers, "--against", str(held), "--caption-cap", "1")
        assert data_prep(["dedup", str(train), "--out", "w", *more]) == 0
        files = (train / "hashes/views.npy", train / "hashes/views.json", train / "weights/w.npy")
        written.append([file.read_bytes() for file in files])
        shutil.rmtree(train / "hashes")
    assert written[0] == written[1]


def test_only_so_many_of_a_caption_are_kept_against_a_counter():
    draws = np.random.default_rng(0)
    digests, wanted = draws.integers(0, 40, 900).astype(np.uint64), draws.random(900) < 0.7
    for cap in (1, 3, 2000):
        seen: dict[int, int] = {}
        for row, over in enumerate(over_cap(digests, wanted, cap)):
            counts = digests[row] != 0 and wanted[row]
            seen[int(digests[row])] = seen.get(int(digests[row]), 0) + int(counts)
            assert over == (counts and seen[int(digests[row])] > cap)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--difference", "256"], "--difference=256"),
        (["--difference", "-1"], "--difference=-1"),
        (["--task-index", "0"], "--task-count"),
        (["--caption-cap", "0"], "--caption-cap=0"),
        (["--caption-name", "alt"], "--caption-name=alt: the dataset has no such caption"),
        (["--against", "TRAIN"], "is the dataset itself"),
        (["--against", "nowhere"], "no manifest.json in nowhere"),
        (["--weights", "no"], "--weights='no': there is no"),
        (["--weights", "text"], "--weights='text'"),
        (["--weights", "short"], "float32 of shape (9,), expected float32 of (37,)"),
        (["--weights", "minus"], "--weights='minus'"),
        (["--weights", "zeros"], "has only zeros"),
        (["--weights", "../x"], "--weights='../x'"),
        (["--out", "../x"], "--out='../x'"),
        (["--workers", "0"], "--workers=0"),
        (["--page", "TRAIN"], "is a folder: name a file"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(copies, capsys, more, named):
    train, _ = copies
    (train / "weights").mkdir()
    (train / "weights/text.npy").write_text("no array")
    np.save(train / "weights/short.npy", np.ones(9, np.float32))
    np.save(train / "weights/minus.npy", np.full(37, -1, np.float32))
    np.save(train / "weights/zeros.npy", np.zeros(37, np.float32))
    assert dedup(train, *(word.replace("TRAIN", str(train)) for word in more)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("error: ") and named in errors[0], errors
    assert not (train / "weights/w.npy").exists()


def test_a_picture_that_cannot_be_read_is_named(copies, monkeypatch, capsys):
    train, _ = copies
    name = "data_prep.dedup.hashes.picture_views"
    monkeypatch.setattr(name, lambda jpeg: picture_views(jpeg[:200]))
    assert dedup(train) == 2
    assert f"{train / 'full'}: the picture of row 0 cannot be read" in capsys.readouterr().err
    assert not (train / "hashes/views.npy").exists()
