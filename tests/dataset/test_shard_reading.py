"""Storage faults are retried, then stop the run by name; they are never bad samples."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from collators import collator
from data_prep_corpus import options, plain_corpus

from data_prep.build.pipeline import build_dataset
from pretrain.batches.loader import batches
from pretrain.batches.options import LoaderOptions
from pretrain.batches.order import SampleOrder
from pretrain.dataset import shards
from pretrain.dataset.reader import Dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples, each in a shard of its own."""
    folder = tmp_path_factory.mktemp("many_shards")
    source = plain_corpus(folder / "corpus.parquet", 60)
    build_dataset(options(source, folder / "out", shard_samples=1))
    return folder / "out"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(shards, "_RETRY_AFTER_S", (0.001, 0.001))


READ_WITH_FEW_DESCRIPTORS = """
import os, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from pretrain.batches.collate import Collator
from pretrain.dataset.reader import Dataset
from pretrain.batches.options import CropOptions
from pretrain.tokens.options import TokenOptions

dataset = Dataset(Path(sys.argv[1]), "full")
collate = Collator(
    dataset=dataset, tokens=TokenOptions(image_px=32, text_tokens=6), patch_px=8, specials="bos",
    crop=CropOptions(), caption_weights={}, seed=0,
)
before = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (before + 30, before + 30))

def read(start):
    rows = (np.arange(60) * 7 + start) % 60
    batch = collate(np.arange(60), rows)
    assert batch["replaced"] == {}, batch["replaced"]
    assert (batch["rows"] == rows).all()

with ThreadPoolExecutor(4) as pool:
    list(pool.map(read, range(4)))
assert len(os.listdir("/proc/self/fd")) <= before + 30 // 2, os.listdir("/proc/self/fd")
"""


def test_sixty_shards_are_read_with_thirty_descriptors_and_nothing_is_replaced(many_shards):
    command = [sys.executable, "-c", READ_WITH_FEW_DESCRIPTORS, str(many_shards)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_more_files_stay_open_than_the_cap_and_none_closes_under_a_reader(
    many_shards, monkeypatch
):
    """Two files at most for eight threads: nearly every read closes a file that others use."""
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    dataset = Dataset(many_shards, "full")
    wanted = [dataset.read(row).jpeg for row in range(60)]

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 60, 500).tolist():
            assert dataset.read(row).jpeg == wanted[row]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    names = {os.path.realpath(p) for p in Path("/proc/self/fd").iterdir()}
    assert len(names & {os.path.realpath(p) for p in dataset.shards}) <= 2


def test_a_file_closed_while_a_thread_reads_it_stays_readable_to_the_end(many_shards, monkeypatch):
    dataset = Dataset(many_shards, "full")
    wanted = dataset.read(0).jpeg
    reading, closed = threading.Event(), threading.Event()
    pread = os.pread

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        reading.set()
        assert closed.wait(10)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(dataset.read, 0)
        assert reading.wait(10)
        dataset.close()
        closed.set()
        assert read.result().jpeg == wanted
    open_now = {os.path.realpath(p) for p in Path("/proc/self/fd").iterdir()}
    assert os.path.realpath(dataset.shards[0]) not in open_now


def fail_reads(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Make the next reads fail as a disk does; no disk can be made to fail on demand."""
    failures = [times]
    pread = os.pread

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        if failures[0] > 0:
            failures[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    return failures


def test_an_io_error_that_passes_is_retried(many_shards, monkeypatch):
    dataset = Dataset(many_shards, "full")
    wanted = dataset.read(5).jpeg
    left = fail_reads(monkeypatch, 2)
    assert dataset.read(5).jpeg == wanted and left == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_io_error_that_stays_stops_the_run_and_names_the_shard(
    tiny_dataset, monkeypatch, workers
):
    collate = collator(tiny_dataset)
    stream = batches(
        collator=collate,
        order=SampleOrder(samples=len(collate.dataset), seed=0),
        start=0,
        end=16,
        global_batch_samples=4,
        rank=0,
        world_size=1,
        options=LoaderOptions(workers=workers),
    )
    fail_reads(monkeypatch, 1_000_000)
    with pytest.raises(
        OSError, match=r"0000\d\.tar.*Input/output error.*start the same"
    ) as stopped:
        next(stream)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("fault", ["cut", "removed", "folder"])
def test_a_shard_that_is_lost_after_the_start_stops_the_run(copy, fault):
    collate = collator(copy)
    shard = copy / "full" / "00000.tar"
    if fault == "cut":
        os.truncate(shard, 700)
    else:
        shard.unlink()
        if fault == "folder":
            shard.mkdir()
    with pytest.raises(OSError, match=r"00000\.tar could not be read at byte \d+"):
        collate(np.arange(4), np.arange(4))


def test_a_shard_that_comes_back_is_opened_anew(copy, monkeypatch):
    dataset = Dataset(copy, "full")
    wanted = dataset.read(0).jpeg
    dataset.close()
    shard, away = copy / "full" / "00000.tar", copy / "away"
    shard.rename(away)
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: away.rename(shard))
    assert dataset.read(0).jpeg == wanted


def test_running_out_of_descriptors_gives_our_own_back(many_shards, monkeypatch):
    """Others took the descriptors that were left: one of ours makes room."""
    dataset = Dataset(many_shards, "full")
    for row in range(20):
        dataset.read(row)
    real, calls = os.open, []

    def scarce(path, flags, *more, **keywords):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *more, **keywords)

    monkeypatch.setattr(os, "open", scarce)
    dataset.read(40)
    open_now = {os.path.realpath(p) for p in Path("/proc/self/fd").iterdir()}
    assert open_now & {os.path.realpath(p) for p in dataset.shards} == {
        os.path.realpath(dataset.shards[40])
    }


def test_a_dataset_rebuilt_under_the_same_name_is_read_anew(copy, many_shards):
    Dataset(copy, "full").read(0)
    copy.rename(copy.parent / "before")
    copy.symlink_to(many_shards)
    other = Dataset(many_shards, "full").read(0)
    assert Dataset(copy, "full").read(0).jpeg == other.jpeg
