"""Deduplication: groups, evaluation pictures and captions against independent answers."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_prep_corpus import caption, encoded, options, picture, write_corpus
from dataset_copies import change_manifest, keep_weights
from PIL import Image, ImageOps
from tiny_datasets import CORPUS

from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from data_prep.dataset_tasks import RowReader
from data_prep.dedup.hashes import FLAT, dataset_hashes, grey, hash_pictures
from data_prep.dedup.neighbours import estimate_s, find, masks, roots
from data_prep.dedup.repeats import over_cap
from data_prep.dedup.semantic import NOBODY
from data_prep.pool import PoolOptions
from pretrain.batches.order import SampleOrder
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.sample_weights import open_weights

CHANGES = {
    "quality 40": lambda p: p,
    "half size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "cropped": lambda p: p.crop((3, 2, p.width - 3, p.height - 2)),
}


def planted(seed: int, count: int) -> np.ndarray:
    """Random hashes, a third of them near another one, some equal, some flat."""
    draws = np.random.default_rng(seed)
    hashes = draws.integers(1, 1 << 63, count, dtype=np.uint64)
    for row in draws.choice(count, count // 3, replace=False):
        flips = draws.choice(63, draws.integers(0, 8), replace=False)
        hashes[row] = hashes[draws.integers(count)] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    hashes[draws.choice(count, 5)] = FLAT
    return hashes


def differing(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(rows, rows) Hamming distances by unpacked bits; far from everything where FLAT."""
    bits = [np.unpackbits(one.view(np.uint8).reshape(-1, 8), axis=1) for one in (left, right)]
    far = (bits[0][:, None] != bits[1][None]).sum(2)
    far[left == FLAT] = far[:, right == FLAT] = 99
    return far


def flooded(near: np.ndarray) -> list[int]:
    """The first row that each row reaches, by walking the matrix."""
    first = [-1] * len(near)
    for start in range(len(near)):
        waiting = [start] if first[start] < 0 else []
        while waiting:
            row = waiting.pop()
            if first[row] < 0:
                first[row] = start
                waiting += np.flatnonzero(near[row]).tolist()
    return first


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_groups_and_contamination_are_those_of_the_whole_matrix(seed, distance):
    hashes, other = planted(seed, 700), planted(seed + 100, 90)
    other[:40] = hashes[100:140] ^ np.uint64(0b1011)
    wanted = np.random.default_rng(seed).random(700) < 0.9
    near = (differing(hashes, hashes) <= distance) & wanted & wanted[:, None]
    first = np.array(flooded(near))
    found = find(hashes, wanted, [other, other[50:]], distance)
    assert (found.keeper == np.where(first != np.arange(700), first, NOBODY)).all()
    assert (found.keeper != NOBODY).sum() >= 5
    sizes = np.bincount(first)
    assert found.groups == (sizes > 1).sum() and found.largest == sizes.max()
    for flags, one in zip(found.contaminated, (other, other[50:]), strict=True):
        assert (flags == ((differing(hashes, one) <= distance).any(1) & wanted)).all()
    assert found.contaminated[0].any() == (distance >= 3)


@pytest.mark.parametrize("count", [10, 1 << 14, 10**6, 10**8])
def test_bands_of_every_table_miss_no_pair(count):
    draws = np.random.default_rng(count)
    for distance in (2, 4, 8):
        tables = np.array(masks(count, distance))
        flips = np.zeros(500, np.uint64)
        for row in range(500):
            for bit in draws.choice(64, distance, replace=False):
                flips[row] |= np.uint64(1) << np.uint64(bit)
        assert ((tables[:, None] & flips) == 0).any(0).all()


def test_pairs_that_do_not_fit_at_once_are_folded_to_the_same_groups(monkeypatch):
    draws = np.random.default_rng(0)
    pairs = [(draws.integers(3000, size=40), draws.integers(3000, size=40)) for _ in range(50)]
    near = np.eye(3000, dtype=bool)
    for left, right in pairs:
        near[left, right] = near[right, left] = True
    monkeypatch.setattr("data_prep.dedup.neighbours._HELD_PAIRS", 64)
    assert roots(pairs, 3000).tolist() == flooded(near)


def test_the_hash_is_the_signs_of_the_low_cosine_waves_about_their_median():
    pictures = np.random.default_rng(0).uniform(0, 255, (20, 32, 32)).astype(np.float32)
    at = np.arange(32)
    for pixels, found in zip(pictures.astype(np.float64), hash_pictures(pictures), strict=True):
        waves = [
            (np.cos(np.pi * (at + 0.5) * down / 32) / 2 ** (0.5 * (down == 0)))
            @ pixels
            @ (np.cos(np.pi * (at + 0.5) * right / 32) / 2 ** (0.5 * (right == 0)))
            for down in range(8)
            for right in range(8)
        ][1:]
        bits = "".join("1" if wave > sorted(waves)[31] else "0" for wave in waves)
        assert int(found) == int(bits, 2)


def test_flat_pictures_are_no_group():
    shades = [encoded(Image.new("RGB", (90, 70), (g, g, g)), "JPEG") for g in range(0, 255, 9)]
    noise = np.random.default_rng(0).integers(120, 124, (70, 90), np.uint8)
    flat = [*shades, encoded(Image.fromarray(noise), "JPEG", quality=40)]
    hashes = hash_pictures(np.stack([grey(jpeg) for jpeg in flat]))
    assert (hashes == FLAT).all()
    found = find(hashes, np.ones(len(hashes), bool), [hashes], 4)
    assert (found.keeper == NOBODY).all() and not found.contaminated[0].any() and found.largest == 0
    faint = Image.fromarray(noise + np.linspace(0, 25, 90).astype(np.uint8))
    assert (hash_pictures(grey(encoded(faint, "JPEG"))[None]) != FLAT).all()


def drawings(count: int) -> list[Image.Image]:
    """Drawings of as many different concepts, on white."""
    table = pl.read_parquet(CORPUS).filter(pl.col("artist") == "noto").unique("code_point")
    table = table.sort("code_point").gather_every(len(table) // count).head(count)
    found = []
    for content in table["image"]:
        drawing = Image.open(io.BytesIO(content)).convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        white.alpha_composite(drawing)
        found.append(white.convert("RGB").resize((160, 160), Image.Resampling.BICUBIC))
    return found


def changed(drawing: Image.Image, name: str) -> Image.Image:
    quality = 40 if name == "quality 40" else 90
    return Image.open(io.BytesIO(encoded(CHANGES[name](drawing), "JPEG", quality=quality)))


@pytest.mark.parametrize(("name", "recall"), [("quality 40", 0.95), ("half size", 0.97),
                                              ("cropped", 0.6)])  # fmt: skip
def test_copies_of_real_drawings_are_found_and_others_are_not(name, recall):
    pictures = drawings(150)
    jpegs = [encoded(p, "JPEG", quality=95) for p in pictures]
    jpegs += [encoded(changed(p, name), "JPEG", quality=95) for p in pictures]
    hashes = hash_pictures(np.stack([grey(jpeg) for jpeg in jpegs]))
    close = differing(hashes[:150], hashes[150:]) <= 4
    right = np.count_nonzero(np.diag(close))
    print(f"{name}: recall {right / 150:.3f}, precision {right / np.count_nonzero(close):.3f}")
    assert right / 150 >= recall
    assert right / np.count_nonzero(close) >= 0.95


def test_a_mirrored_picture_is_another():
    one = picture(1, width=160, height=120)
    jpegs = [encoded(p, "JPEG") for p in (one, ImageOps.mirror(one))]
    left, right = hash_pictures(np.stack([grey(jpeg) for jpeg in jpegs]))
    assert np.bitwise_count(left ^ right) > 16


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


def test_the_page_shows_each_pair_with_its_distance_and_loads_nothing(copies, tmp_path):
    train, held = copies
    pages = [tmp_path / "one.html", tmp_path / "other.html"]
    for page in pages:
        assert dedup(train, "--against", str(held), "--page", str(page)) == 0
    text = pages[0].read_text()
    assert "<script" not in text and 'src="http' not in text
    assert text == pages[1].read_text()
    hashes = np.load(train / "hashes/phash.npy")
    found = [int(word) for word in re.findall(r">distance (\d+)<", text)]
    wanted = [bin(int(hashes[row] ^ hashes[row + 30])).count("1") for row in range(5)]
    assert sorted(found) == sorted(wanted)  # no group is shown twice
    evaluation = np.load(held / "hashes/phash.npy")
    near = [int(word) for word in re.findall(r">train, distance (\d+)<", text)]
    assert near == [differing(hashes[row : row + 1], evaluation).min() for row in range(25, 30)]
    # Four groups of two, one group of two, five pairs with an evaluation picture.
    assert text.count("<img") == 2 * (4 + 1 + 5)
    assert (
        "<pre" not in text and "differ in at most 4 bits." in text and "Nearly one colour" in text
    )
    assert text.count("<h2>") == 3
    assert dedup(held, "--page", str(pages[0])) == 0
    assert "<h2>" not in pages[0].read_text()  # no two of them are near: no empty section


def test_a_search_of_hours_is_told_before_it_starts(copies, monkeypatch, capsys):
    train, _ = copies
    assert dedup(train, "--distance", "8") == 0
    assert "tables" not in capsys.readouterr().err
    monkeypatch.setattr("data_prep.dedup.command.LONG_S", 0)
    assert dedup(train, "--distance", "8") == 0
    told = capsys.readouterr().err
    assert f"in {len(masks(37, 8))} tables" in told and "--distance=8 sorts 37 hashes" in told
    assert estimate_s(10**8, 4) < 3600 < 86_400 < estimate_s(10**8, 8)


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
    monkeypatch.setattr("data_prep.dedup.hashes._BLOCK_ROWS", 8)
    train, held = copies
    written = []
    for workers in ("1", "2"):
        more = ("--workers", workers, "--against", str(held), "--caption-cap", "1")
        assert data_prep(["dedup", str(train), "--out", "w", *more]) == 0
        files = (train / "hashes/phash.npy", train / "hashes/phash.json", train / "weights/w.npy")
        written.append([file.read_bytes() for file in files])
        shutil.rmtree(train / "hashes")
    assert written[0] == written[1]


def hashes_of(dataset: Path) -> np.ndarray:
    reader = RowReader(directory=dataset, manifest=read_manifest(dataset))
    return dataset_hashes(reader, PoolOptions(workers=1))


def test_hashes_are_kept_and_made_anew_only_where_they_are_not_this_datasets(copies):
    train, _ = copies
    right = hashes_of(train).copy()
    file, told = train / "hashes/phash.npy", train / "hashes/phash.json"
    stored = np.load(file)
    assert stored.dtype == np.dtype("<u8") and (stored == right).all()
    shards = train / "full"
    shards.rename(train / "away")  # nothing can be read but the hashes
    assert (hashes_of(train) == right).all()
    with pytest.raises(OSError):
        stale = json.loads(told.read_text()) | {"rule": "another"}
        told.write_text(json.dumps(stale))
        hashes_of(train)
    (train / "away").rename(shards)
    assert (hashes_of(train) == right).all()
    np.save(file, right + np.uint64(1))  # as a crash between the two files leaves it
    assert (hashes_of(train) == right).all()
    np.save(file, right[:9])
    change_manifest(train, lambda m: m["provenance"].update(note="another dataset"))
    again = hashes_of(train)
    assert (again == right).all() and (np.load(file) == right).all()
    assert json.loads(told.read_text())["dataset"] == read_manifest(train).fingerprint


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
        (["--distance", "17"], "--distance=17"),
        (["--distance", "-1"], "--distance=-1"),
        (["--caption-cap", "0"], "--caption-cap=0"),
        (["--caption-name", "alt"], "--caption-name=alt: the dataset has no such caption"),
        (["--against", "TRAIN"], "is the dataset itself"),
        (["--against", "nowhere"], "no manifest.json in nowhere"),
        (["--weights", "no"], "--weights='no': there is no"),
        (["--weights", "text"], "--weights='text'"),
        (["--weights", "short"], "float32 of shape (9,), needed is float32 of (37,)"),
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
    monkeypatch.setattr("data_prep.dedup.hashes.grey", lambda jpeg: grey(jpeg[:200]))
    assert dedup(train) == 2
    assert f"{train / 'full'}: the picture of row 0 cannot be read" in capsys.readouterr().err
    assert not (train / "hashes").exists()
