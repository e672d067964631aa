"""Shards that lie far away are read through a bounded copy on the node's disk, or not at all."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import options, plain_corpus
from dataset_copies import change_manifest
from forked_runs import train

from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from pretrain.batches.ahead import ReadAhead, cache_shortage
from pretrain.batches.order import SampleOrder
from pretrain.dataset import shards
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import SampleWeights
from pretrain.dataset.shards import ShardOptions

ROOT = Path(__file__).resolve().parents[2]
COUNT = 40


class Server:
    """A dataset directory over HTTP on this machine, with faults."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()  # answers with 503 still to give
        self.hanging = threading.Event()
        self.hanging.set()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked[name] += 1
                outer.hanging.wait(20)
                if outer.broken[name] > 0:
                    outer.broken[name] -= 1
                    self.send_error(503)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        class Patient(ThreadingHTTPServer):
            request_queue_size = 128  # a refused connection would be asked again, and count twice

        self._server = Patient(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.hanging.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples, each in a shard of its own."""
    folder = tmp_path_factory.mktemp("far")
    source = plain_corpus(folder / "corpus.parquet", COUNT)
    build_dataset(options(source, folder / "out", shard_samples=1))
    return folder / "out"


@pytest.fixture
def server(original: Path) -> Iterator[Server]:
    server = Server(original)
    yield server
    server.close()


@pytest.fixture
def near(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert data_prep(["fetch", str(tmp_path / "near"), "--url", server.url]) == 0
    capsys.readouterr()
    return tmp_path / "near"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_RETRY_AFTER_S", (0.001, 0.001))


def far(server: Server, cache: Path, gib: float = 1.0, timeout_s: float = 30.0) -> ShardOptions:
    return ShardOptions(url=server.url, cache=cache, cache_gib=gib, timeout_s=timeout_s)


def copied(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.iterdir() if path.is_file())


def test_what_comes_from_afar_is_what_lies_there_and_comes_once(server, near, original, tmp_path):
    assert not list(near.rglob("*.tar"))
    dataset, wanted = Dataset(near, "full", shards=far(server, tmp_path / "c")), original
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(dataset.read, [*range(COUNT), *range(COUNT)]))
    local = Dataset(wanted, "full")
    for row, sample in enumerate(samples):
        assert sample.jpeg == local.read(row % COUNT).jpeg
    shard_files = [one.file for one in local.manifest.tiers["full"].shards]
    assert {name: server.asked[name] for name in shard_files} == dict.fromkeys(shard_files, 1)
    assert dataset.fingerprint == local.fingerprint
    # And a folder on another disk, as a network disk is, needs no URL.
    there = Dataset(original, "full", shards=ShardOptions(cache=tmp_path / "other"))
    assert there.read(3).jpeg == local.read(3).jpeg
    assert len(list((tmp_path / "other").glob("*.tar"))) == 1


def test_the_copies_never_take_more_than_they_may(server, near, tmp_path):
    sizes = [one.bytes for one in read_manifest(near).tiers["full"].shards]
    limit = 5 * max(sizes)
    dataset = Dataset(near, "full", shards=far(server, tmp_path / "c", limit / 2**30))
    for row in (*range(COUNT), *reversed(range(COUNT))):
        dataset.read(row)
        assert copied(tmp_path / "c") <= limit
    assert copied(tmp_path / "c") > 2 * max(sizes)
    with pytest.raises(ValueError, match=r"data\.shards\.cache_gib=.* two shards.*raise it"):
        Dataset(near, "full", shards=far(server, tmp_path / "c", max(sizes) / 2**30))


READ_ALL = """
import sys
from pathlib import Path
from pretrain.dataset.shards import ShardOptions
from pretrain.dataset.reader import Dataset
url, near, cache = sys.argv[1:]
dataset = Dataset(Path(near), "full", shards=ShardOptions(url=url, cache=Path(cache)))
print("begun", flush=True)
for row in range(len(dataset)):
    dataset.read(row)
"""


def reader(server: Server, near: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", READ_ALL, server.url, str(near), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def test_ranks_of_a_node_share_their_copies_and_a_killed_one_leaves_nothing(server, near, tmp_path):
    cache = tmp_path / "c"
    server.hanging.clear()
    killed = reader(server, near, cache)
    assert killed.stdout is not None and killed.stdout.readline() == b"begun\n"
    give_up = time.monotonic() + 30
    while not list(cache.glob("*.part")) and time.monotonic() < give_up:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(cache.glob("*.part"))) == 1
    server.hanging.set()
    server.asked.clear()
    ranks = [reader(server, near, cache) for _ in range(3)]
    assert [rank.communicate() and rank.returncode for rank in ranks] == [0, 0, 0]
    assert not list(cache.glob("*.part")) and len(list(cache.glob("*.tar"))) == COUNT
    assert set(server.asked.values()) == {1}


def test_a_passing_fault_is_retried_and_a_lasting_one_stops_by_name(server, near, tmp_path):
    file = read_manifest(near).tiers["full"].shards[7].file
    dataset = Dataset(near, "full", shards=far(server, tmp_path / "c"))
    server.broken[file] = 2
    dataset.read(7)
    (tmp_path / "c" / dataset.shards[7]).unlink()
    dataset.close()
    server.broken[file] = 9
    with pytest.raises(OSError, match=rf"{server.url}/{file} could not be copied.*503"):
        dataset.read(7)
    server.hanging.clear()
    slow = Dataset(near, "full", shards=far(server, tmp_path / "d", timeout_s=0.2))
    with pytest.raises(OSError, match=r"nothing came for data\.shards\.timeout_s=0\.2"):
        slow.read(8)
    assert not list((tmp_path / "d").glob("*.part"))


def test_copies_that_others_removed_are_not_held_open(server, near, tmp_path):
    """A loader process that reads what its neighbours bring."""
    sizes = [one.bytes for one in read_manifest(near).tiers["full"].shards]
    options = far(server, tmp_path / "c", 4 * max(sizes) / 2**30)
    brings, reads = (Dataset(near, "full", shards=options) for _ in range(2))
    reader = shards.ShardReader()
    for row in range(COUNT):
        path = brings.shards[row]
        brings.read(row)
        brings.close()
        reader.read(path, 0, 10, lambda: None)
    held = [one for one in reader._open.values() if os.fstat(one.descriptor).st_nlink == 0]
    assert len(held) <= 1
    reads.close()


def test_another_shard_than_the_manifests_is_never_read(near, server, original, tmp_path):
    first, second = [one.sha256 for one in read_manifest(near).tiers["full"].shards[:2]]
    change_manifest(near, lambda m: m["tiers"]["full"]["shards"][0].update(sha256=second))
    dataset = Dataset(near, "full", shards=far(server, tmp_path / "c"))
    with pytest.raises(
        OSError, match=rf"sha256 {first[:12]}.* that belongs there has {second[:12]}"
    ):
        dataset.read(0)
    assert not list((tmp_path / "c").glob("*.tar"))


def test_fetch_says_what_it_cannot_do(server, original, tmp_path, capsys):
    out = str(tmp_path / "x")
    for words, message in (
        (["--url", server.url + "/full"], "404"),
        (["--url", server.url, "--tiers", "160"], "has image tiers ['full']"),
        (["--url", "nonsense://a/b"], "nonsense"),
        (["--url", "http://127.0.0.1:9"], "ClientConnectorError"),
    ):
        assert data_prep(["fetch", out, *words]) == 2
        found = capsys.readouterr().err
        assert message in found and found.count("\n") == 1
    server.broken["full/index.npy"] = 1
    assert data_prep(["fetch", out, "--url", server.url]) == 2
    assert not (tmp_path / "x" / "manifest.json").exists()
    server.asked.clear()
    assert data_prep(["fetch", out, "--url", server.url]) == 0
    assert server.asked["tokenizer.model"] == 0  # there already
    with pytest.raises(ValueError, match=r"data\.shards\.url=.* add data\.shards\.cache"):
        ShardOptions(url=server.url)


def test_several_fetches_into_one_folder_at_once_all_end_well(server, tmp_path):
    words = [sys.executable, "-m", "data_prep", "fetch", str(tmp_path / "x"), "--url", server.url]
    fetches = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
    told = [process.communicate()[1] for process in fetches]
    assert [process.returncode for process in fetches] == [0] * 4, told
    assert read_manifest(tmp_path / "x").samples == COUNT
    assert not list((tmp_path / "x").rglob("*.part"))


@pytest.mark.soak
def test_training_from_afar_is_training(tiny_dataset, tmp_path):
    server = Server(tiny_dataset)
    try:
        assert data_prep(["fetch", str(tmp_path / "near"), "--url", server.url]) == 0
        shards = ("--data.shards.url", server.url, "--data.shards.cache", str(tmp_path / "cache"))
        workers = ("--data.loader.workers", "2")
        ended = train(tmp_path / "far", tmp_path / "near", *shards, *workers)
        assert ended.code == 0, ended.output
    finally:
        server.close()
    assert train(tmp_path / "local", tiny_dataset).code == 0
    far_run, local = (tmp_path / run / "stages/full.safetensors" for run in ("far", "local"))
    assert far_run.read_bytes() == local.read_bytes()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("samples", "ranks"), [(9000, 1), ((1 << 22) + 5, 3)])
def test_a_windows_stretches_are_where_its_samples_lie(samples, ranks, weighted):
    weights = None
    if weighted:
        drawn = np.random.default_rng(0).exponential(size=samples).astype(np.float32)
        weights = SampleWeights(drawn)
    order = SampleOrder(samples=samples, seed=3, window_samples=1 << 12, weights=weights)
    for first in (0, order.epoch_samples - 2000, order.epoch_samples + 77):
        for rank in range(ranks):
            positions = order.share(first, 1200, rank, ranks)
            rows = order.rows(positions)
            inside = np.zeros(samples, bool)
            for window in order.windows(first, rank, ranks):
                for one in (window, order.following(window)):
                    for start, stop in order.stretches(one):
                        inside[start:stop] = True
            assert inside[rows].all()
            share = inside.mean()
            assert share < 0.02 * len(order.windows(first, rank, ranks)) or samples == 9000


def test_the_next_window_is_there_before_it_is_needed(server, near, tmp_path, monkeypatch):
    """Chunks of two samples, windows of eight: what the loader will ask for is asked for before."""
    monkeypatch.setattr("pretrain.batches.order.CHUNK_SAMPLES", 2)
    dataset = Dataset(near, "full", shards=far(server, tmp_path / "c"))
    order = SampleOrder(samples=COUNT, seed=0, window_samples=8)
    ahead = ReadAhead(dataset, order, 0, 1)
    for position in range(0, 3 * COUNT, 2):
        ahead.at(position)
        wanted = {dataset.shards[row] for row in order.rows(np.arange(position, position + 2))}
        give_up = time.monotonic() + 20
        while not all(map(os.path.exists, wanted)) and time.monotonic() < give_up:
            time.sleep(0.01)
        assert all(map(os.path.exists, wanted)), position
        if position == 0:
            assert len(list((tmp_path / "c").glob("*.tar"))) <= 2 * 8
    ahead.close()
    assert max(server.asked[name] for name in server.asked if name.endswith(".tar")) == 1


def test_what_is_read_ahead_is_given_up_with_the_loader(server, near, tmp_path):
    dataset = Dataset(near, "full", shards=far(server, tmp_path / "c", timeout_s=300.0))
    server.hanging.clear()
    ahead = ReadAhead(dataset, SampleOrder(samples=COUNT, seed=0), 0, 1)
    ahead.at(0)
    end = time.monotonic() + 10
    while not list((tmp_path / "c").glob("*.part")):
        assert time.monotonic() < end
        time.sleep(0.01)
    ahead.close()
    while ahead_threads():
        assert time.monotonic() < end, "the server hangs, and so would the end of the process"
        time.sleep(0.01)
    assert not list((tmp_path / "c").glob("*.part"))


def ahead_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("ahead")]


def test_a_cache_that_holds_less_than_two_windows_is_told_of(near, server, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.batches.order.CHUNK_SAMPLES", 2)
    order = SampleOrder(samples=COUNT, seed=0, window_samples=8)
    shards = read_manifest(near).tiers["full"].shards
    largest = max(shard.bytes for shard in shards)

    def warning(copies: float, ranks: int = 1) -> str | None:
        cache = far(server, tmp_path / "c", copies * largest / 2**30)
        return cache_shortage(Dataset(near, "full", shards=cache), order, 0, 0, ranks)

    # Two windows of eight samples, each of a shard of its own, and a border's part of a chunk.
    found = warning(12)
    assert found is not None and "data.shards.cache_gib" in found
    assert "lower data.shuffle_window_samples" in found
    assert warning(20) is None and warning(COUNT) is None
    assert (
        cache_shortage(Dataset(near, "full", shards=far(server, tmp_path)), order, 0, 0, 1) is None
    )
    plain = Dataset(near, "full", shards=far(server, tmp_path / "c"))
    plain._copies = None
    assert cache_shortage(plain, order, 0, 0, 1) is None


def test_a_tier_that_was_not_fetched_is_named_with_the_command(tiny_tiers, tmp_path):
    server = Server(tiny_tiers)
    try:
        words = ["--url", server.url, "--tiers", "full"]
        assert data_prep(["fetch", str(tmp_path / "near"), *words]) == 0
        Dataset(tmp_path / "near", "full", shards=far(server, tmp_path / "c"))
        with pytest.raises(FileNotFoundError, match=r"data_prep fetch .*near --url .* --tiers 16"):
            Dataset(tmp_path / "near", "16", shards=far(server, tmp_path / "c"))
    finally:
        server.close()


def test_a_larger_tier_brings_the_shards_of_its_texts_too(tiny_tiers, tmp_path, monkeypatch):
    """And counts their bytes: for two shards of each tier, and for two shuffle windows."""
    monkeypatch.setattr("pretrain.batches.order.CHUNK_SAMPLES", 1)
    server, local = Server(tiny_tiers), Dataset(tiny_tiers, "full")
    try:
        words = ["--url", server.url, "--tiers", "full"]
        assert data_prep(["fetch", str(tmp_path / "near"), *words]) == 0
        assert not (tmp_path / "near" / "16").exists()
        dataset = Dataset(tmp_path / "near", "full", shards=far(server, tmp_path / "c"))
        for row in range(4):
            ours, theirs = dataset.read(row), local.read(row)
            assert ours.jpeg == theirs.jpeg and ours.ids.tolist() == theirs.ids.tolist()
            assert dataset.read_json(row) == local.read_json(row)
        shards = [shard for tier in local.manifest.tiers.values() for shard in tier.shards]
        assert {shard.file: server.asked[shard.file] for shard in shards} == dict.fromkeys(
            (f"{tier}/{number:05d}.tar" for tier in ("16", "full") for number in range(4)), 1
        )
        total = sum(shard.bytes for shard in shards)
        order = SampleOrder(samples=4, seed=0, window_samples=2)
        for spare, fits in ((0, True), (-1, False)):
            gib = (total + spare) / 2**30
            small = Dataset(tmp_path / "near", "full", shards=far(server, tmp_path / "d", gib))
            assert (cache_shortage(small, order, 0, 0, 1) is None) == fits
        largest = sum(
            max(shard.bytes for shard in tier.shards) for tier in local.manifest.tiers.values()
        )
        with pytest.raises(ValueError, match="two shards of each of the tiers"):
            few = far(server, tmp_path / "d", (2 * largest - 1) / 2**30)
            Dataset(tmp_path / "near", "full", shards=few)
    finally:
        server.close()


@pytest.fixture(scope="module")
def tiny_tiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiers")
    source = plain_corpus(folder / "corpus.parquet", 4)
    build_dataset(options(source, folder / "out", tiers="full:90,16:90", shard_samples=1))
    return folder / "out"
