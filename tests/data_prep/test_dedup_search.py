"""Near duplicates among pictures: the search against all pairs, the kept views against kills."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus
from dataset_copies import change_manifest
from PIL import Image, ImageOps
from tiny_datasets import CORPUS

from data_prep.build.pipeline import build_dataset
from data_prep.dataset_tasks import RowReader
from data_prep.dedup import NOBODY
from data_prep.dedup.compare import differences
from data_prep.dedup.hashes import dataset_views, picture_views
from data_prep.dedup.neighbours import codes_of, find, roots
from data_prep.pool import PoolOptions, RunOptions
from pretrain.dataset.manifest import read_manifest

MOST = 18.0
CHANGES = {
    "quality 30": lambda p: p,
    "a tenth brighter": lambda p: p.point(lambda level: min(255, round(level * 1.1))),
    "a tenth darker": lambda p: p.point(lambda level: round(level * 0.9)),
    "5 % cropped": lambda p: p.crop((4, 4, p.width - 4, p.height - 4)),
    "half size": lambda p: p.resize((p.width // 2, p.height // 2)),
}


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


def changed(drawing: Image.Image, name: str) -> bytes:
    quality = 30 if name == "quality 30" else 90
    return encoded(CHANGES[name](drawing), "JPEG", quality=quality)


def saved(path: Path, views: np.ndarray) -> Path:
    np.save(path, views)
    return path


@pytest.fixture(scope="module")
def originals() -> tuple[list[Image.Image], np.ndarray]:
    pictures = drawings(150)
    return pictures, np.stack([picture_views(encoded(p, "JPEG", quality=95)) for p in pictures])


@pytest.mark.parametrize("name", CHANGES)
def test_copies_of_real_drawings_are_found_and_others_are_not(name, originals, tmp_path):
    pictures, views = originals
    copies = np.stack([picture_views(changed(p, name)) for p in pictures])
    files = [saved(tmp_path / "copies.npy", copies), saved(tmp_path / "views.npy", views)]
    nearest = find(files, np.ones(150, bool), MOST, PoolOptions(workers=1)).nearest[0]
    right = np.count_nonzero(nearest == np.arange(150))
    wrong = np.count_nonzero((nearest != NOBODY) & (nearest != np.arange(150)))
    print(f"{name}: {right} of 150 found, {wrong} taken for another")
    assert right >= 0.9 * 150 and wrong <= 1


def planted(originals: tuple[list[Image.Image], np.ndarray]) -> np.ndarray:
    """Views of drawings, of copies of some, and of flat pictures."""
    pictures, views = originals
    copies = [changed(p, name) for name in CHANGES for p in pictures[:30]]
    flat = [encoded(Image.new("RGB", (90, 70), (g, g, g)), "JPEG") for g in (0, 99, 255)]
    return np.concatenate([views, np.stack([picture_views(file) for file in copies + flat])])


def keys_of(code: np.ndarray) -> set[int]:
    """All signs with each unsure one taken either way, by counting."""
    sure, unsure = (int(part) for part in code)
    places = [bit for bit in range(64) if unsure >> bit & 1]
    return {
        sure | sum(1 << bit for at, bit in enumerate(places) if number >> at & 1)
        for number in range(1 << len(places))
        if unsure
    }


def test_groups_are_those_of_all_pairs_for_any_shares_and_workers(originals, tmp_path, monkeypatch):
    views = planted(originals)
    keys = [[keys_of(code) for code in row] for row in codes_of(views)]
    near = np.eye(len(views), dtype=bool)
    for one in range(len(views)):
        for other in range(one):
            for mine, its in ((0, 0), (0, 1), (1, 0)):
                if keys[one][mine] & keys[other][its]:
                    far = differences(views[None, other, its], views[None, one, mine])[0]
                    near[one, other] |= far <= MOST
    wanted = np.random.default_rng(0).random(len(views)) < 0.9
    near = (near | near.T) & wanted & wanted[:, None]
    first = np.array(flooded(near))
    file = saved(tmp_path / "views.npy", views)
    for share_keys, workers in ((1 << 23, 1), (500, 1), (3000, 2)):
        monkeypatch.setattr("data_prep.dedup.neighbours._SHARE_KEYS", share_keys)
        found = find([file], wanted, MOST, PoolOptions(workers=workers))
        assert (found.keeper == np.where(first != np.arange(len(views)), first, NOBODY)).all()
        assert found.groups == (np.bincount(first) > 1).sum() >= 20
    assert list(tmp_path.iterdir()) == [file]


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


def test_pairs_that_do_not_fit_at_once_are_folded_to_the_same_groups(monkeypatch):
    draws = np.random.default_rng(0)
    pairs = [(draws.integers(3000, size=40), draws.integers(3000, size=40)) for _ in range(50)]
    near = np.eye(3000, dtype=bool)
    for left, right in pairs:
        near[left, right] = near[right, left] = True
    monkeypatch.setattr("data_prep.dedup.neighbours._HELD_PAIRS", 64)
    assert roots(pairs, 3000).tolist() == flooded(near)


def test_mirrored_recoloured_and_flat_pictures_are_no_group(tmp_path):
    one = picture(1, width=160, height=120)
    red, blue = (Image.new("RGB", (90, 90), "white") for _ in range(2))
    red.paste((200, 60, 60), (20, 20, 70, 70))
    blue.paste((60, 60, 255), (20, 20, 70, 70))
    noise = np.random.default_rng(0).integers(120, 124, (70, 90), np.uint8)
    pictures = [one, ImageOps.mirror(one), red, blue, Image.fromarray(noise)]
    pictures += [Image.new("RGB", (90, 70), (g, g, g)) for g in range(0, 255, 9)]
    views = np.stack([picture_views(encoded(p, "JPEG")) for p in pictures])
    found = find(
        [saved(tmp_path / "views.npy", views)],
        np.ones(len(views), bool),
        MOST,
        PoolOptions(workers=1),
    )
    assert (found.keeper == NOBODY).all() and found.flat == len(pictures) - 4


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A dataset of three blocks of rows."""
    folder = tmp_path_factory.mktemp("views")
    images = [encoded(picture(seed, width=40, height=30)) for seed in range(300)]
    texts = [f"picture {row}" for row in range(2100)]
    images = [images[row % 300] for row in range(2100)]
    corpus = write_corpus(folder / "c.parquet", {"image": images, "caption": texts})
    build_dataset(options(corpus, folder / "set", tagger="none"))
    return folder / "set"


def views_of(dataset: Path, run: RunOptions) -> np.ndarray | str:
    return dataset_views(RowReader(directory=dataset, manifest=read_manifest(dataset)), run)


def bytes_of(dataset: Path) -> list[bytes]:
    files = sorted((dataset / "hashes").glob("views.*"))
    assert len(files) == 2 and not (dataset / ".work").exists()
    return [file.read_bytes() for file in files]


def test_shares_and_killed_processes_leave_the_bytes_of_one_process(large, tmp_path):
    whole, shared, killed = (shutil.copytree(large, tmp_path / n) for n in ("one", "two", "three"))
    assert not isinstance(views_of(whole, RunOptions(workers=1)), str)
    for share in (2, 0, 1):
        run = RunOptions(workers=1, task_index=share, task_count=3)
        assert f"share {share} of 3 is done" in str(views_of(shared, run))
        assert not (shared / "hashes/views.npy").exists()
    assert len(list((shared / ".work").rglob("0*.npz"))) == 3
    views_of(shared, RunOptions(workers=2))
    assert bytes_of(shared) == bytes_of(whole)
    command = [sys.executable, "-m", "data_prep", "dedup", str(killed), "--out", "w"]
    process = subprocess.Popen([*command, "--workers", "1"])
    while not (parts := list((killed / ".work").rglob("000000*.npz"))) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert parts and not (killed / "weights/w.npy").exists()
    before = parts[0].stat().st_mtime_ns if parts[0].exists() else None
    views_of(killed, RunOptions(workers=1, task_index=0, task_count=3))
    assert before is None or parts[0].stat().st_mtime_ns == before  # it is not made again
    views_of(killed, RunOptions(workers=1))
    assert bytes_of(killed) == bytes_of(whole)


def test_views_are_kept_and_made_anew_only_where_they_are_not_this_datasets(large, tmp_path):
    dataset = shutil.copytree(large, tmp_path / "set")
    run = RunOptions(workers=1)
    right = np.array(views_of(dataset, run))
    file, told = dataset / "hashes/views.npy", dataset / "hashes/views.json"
    shards = dataset / "full"
    shards.rename(dataset / "away")  # nothing can be read but the views
    assert np.array_equal(np.array(views_of(dataset, run)), right)
    with pytest.raises(OSError):
        told.write_text(json.dumps(json.loads(told.read_text()) | {"rule": "another"}))
        views_of(dataset, run)
    (dataset / "away").rename(shards)
    np.save(file, right + np.uint8(1))  # as a crash between the two files leaves it
    assert np.array_equal(np.array(views_of(dataset, run)), right)
    change_manifest(dataset, lambda m: m["provenance"].update(note="another dataset"))
    again = views_of(dataset, run)
    assert np.array_equal(np.array(again), right)
    assert json.loads(told.read_text())["dataset"] == read_manifest(dataset).fingerprint
