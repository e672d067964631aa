"""A dataset on a hub is built as the same files on disk are; what hinders it is one line."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture, plain_corpus
from dataset_hub import TOKEN, DatasetHub, dataset_hub

from data_prep.__main__ import main
from pretrain.shard_format import read_manifest

ROOT = Path(__file__).resolve().parents[1]
CARD = b"""---
configs:
- config_name: drawings
  data_files:
  - {split: train, path: "data/train-*.parquet"}
  - {split: test, path: "data/test-*.parquet"}
---
"""
COMMON = ["--tiers", "48:90", "--shard-samples", "8", "--vocab-size", "400", "--workers", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two Parquet files of a train split, one of a test split, three tars."""
    folder = tmp_path_factory.mktemp("files")
    table = pq.read_table(plain_corpus(folder / "all.parquet", 50))
    found = {"README.md": CARD}
    for name, first, rows in (("train-0", 0, 21), ("train-1", 21, 19), ("test-0", 40, 10)):
        path = folder / f"{name}.parquet"
        pq.write_table(table.slice(first, rows), path, row_group_size=7)
        found[f"data/{path.name}"] = path.read_bytes()
    for number in range(3):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(12 * number, 12 * number + 12):
                data = {"jpg": encoded(picture(i), "JPEG"), "txt": caption(i).encode()}
                for suffix, content in data.items():
                    member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        found[f"tars/{number:05d}.tar"] = stream.getvalue()
    return found


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[DatasetHub]:
    with dataset_hub() as hub:
        hub.publish("lab/drawings", files)
        yield hub


def command(source: str, out: Path, server: DatasetHub, *more: str, **environment: str) -> dict:
    """A build as a user starts it; no address but the server's is asked for."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    home = {"HF_ENDPOINT": server.address, "HF_HOME": str(out.parent / "home")}
    arguments = ["build", "--source", source, "--out", str(out), *COMMON, *more]
    return {
        "args": [sys.executable, "-m", "data_prep", *arguments],
        "cwd": ROOT,
        "env": {**inherited, **home, "HF_HUB_DISABLE_XET": "1", **environment},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def build(*arguments, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(**command(*arguments, **environment), timeout=120)


def shards(out: Path) -> dict[str, bytes]:
    """All but the manifest, which says where the corpus lay."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def assert_as_from_disk(
    out: Path, files: dict[str, bytes], names: str, tmp_path: Path, *more: str
) -> dict:
    """The same bytes as a build of the same files on disk; returns the manifest's `hub`."""
    folder, wanted = tmp_path / "disk", tmp_path / "wanted"
    for path, data in files.items():
        if path.startswith(names):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    source = ["build", "--source", str(folder), "--out", str(wanted), *COMMON]
    assert main([*source, *more]) == 0
    assert shards(out) == shards(wanted) and len(shards(out)) > 5
    found, other = read_manifest(out).provenance, read_manifest(wanted).provenance
    origin = found.pop("hub")
    assert found == other
    return origin


def test_a_split_of_parquet_files(server, files, tmp_path):
    out = tmp_path / "out"
    some = ["--where", "number % 7 <> 3", "--caption", "a={caption}", "--caption", "b=no {split}"]
    done = build("hf://datasets/lab/drawings", out, server, "--hub-split", "train", *some)
    assert done.returncode == 0, done.stderr[-2000:]
    origin = assert_as_from_disk(out, files, "data/train", tmp_path, *some)
    commit = server.datasets["lab/drawings"].branches["main"]
    assert origin == {
        "address": "hf://datasets/lab/drawings@main", "commit": commit, "hub_split": "train",
    }  # fmt: skip
    assert commit[:12] in done.stderr
    assert not [path for path, _ in server.content.sent if "test" in path or path.endswith("tar")]


def test_tars_by_pattern_with_room_for_one_in_the_cache(server, files, tmp_path):
    out = tmp_path / "out"
    small = ["--hub-cache", str(tmp_path / "cache"), "--hub-cache-gib", "0"]
    done = build("hf://lab/drawings/tars/0000[012].tar", out, server, *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, files, "tars", tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1
    assert max(Counter(path for path, _ in server.content.sent).values()) > 2  # they had gone


def test_each_file_is_brought_once_where_there_is_room(server, files, tmp_path):
    out = tmp_path / "out"
    done = build("hf://datasets/lab/drawings/tars", out, server, "--workers", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path for path, _ in server.content.sent) == sorted(
        name for name in files if name.endswith(".tar")
    )
    assert_as_from_disk(out, files, "tars", tmp_path)


def test_killed_it_goes_on_at_its_commit_though_the_branch_moved(server, files, tmp_path):
    out = tmp_path / "out"
    asked = ("hf://lab/drawings/data/train-*", out, server)
    first = server.datasets["lab/drawings"].branches["main"]
    process = subprocess.Popen(**command(*asked))
    while process.poll() is None and not list((out / ".build").glob("00000[1-9]/0.json")):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    other = {**files, "data/train-0.parquet": files["data/test-0.parquet"]}
    server.publish("lab/drawings", other)
    # Another machine of an array: nothing lies there yet.
    shutil.rmtree(tmp_path / "home")
    shares = ["--task-count", "2", "--task-index"]
    assert build(*asked, *shares, "1").returncode == 0
    done = build(*asked)
    assert done.returncode == 0, done.stderr[-2000:]
    assert assert_as_from_disk(out, files, "data/train", tmp_path)["commit"] == first
    again = build(*asked)
    assert again.returncode == 0 and "is finished" in again.stderr
    assert build(*asked, "--overwrite").returncode == 0
    assert read_manifest(out).provenance["hub"]["commit"] != first


def test_what_comes_damaged_is_asked_for_again(server, files, tmp_path):
    server.content.cut = server.content.spoilt = 1
    out = tmp_path / "out"
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 0, done.stderr[-2000:]
    assert server.content.cut == server.content.spoilt == 0
    assert_as_from_disk(out, files, "tars", tmp_path)


def test_what_stays_damaged_stops_the_build_and_is_no_rejection(server, files, tmp_path):
    out = tmp_path / "out"
    server.content.broken = "00001.tar"
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 2 and not (out / "manifest.json").exists()
    assert "refused (404: Entry not found)" in done.stderr and "00001.tar" in done.stderr
    server.content.broken, server.content.spoilt = "", 1000
    shutil.rmtree(tmp_path / "home")
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 2 and not (out / "manifest.json").exists()
    assert "did not send all" in done.stderr and "00000.tar" in done.stderr
    server.content.spoilt = 0
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, files, "tars", tmp_path)


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ("hf://datasets/lab/nothing", [], ["no such dataset, or a private one", "HF_TOKEN"]),
        ("hf://datasets/lab/private", [], ["no token was found", "HF_TOKEN", "--source"]),
        ("hf://datasets/lab/gated", [], ["grants access", "HF_TOKEN"]),
        ("hf://datasets/lab/drawings@v9", [], ["no such revision", "behind the @"]),
        ("hf://datasets/lab/drawings", [], ["['test', 'train']", "--hub-split"]),
        ("hf://datasets/lab/drawings", ["--hub-config", "x"], ["--hub-config", "drawings"]),
        ("hf://lab/drawings/data", ["--hub-split", "train"], ["leave out", "or the path"]),
        ("hf://lab/drawings/none/*", [], ["no such file", "'data'", "'tars'"]),
        ("hf://lab/drawings/README.md", [], ["['.md']", "hf download", "refs/convert/parquet"]),
        ("hf://lab/drawings/tars", ["--image-root", "x"], ["leave out --image-root"]),
        ("hf://lab/drawings", ["--format", "folder"], ["leave out --format"]),
        ("hf://lab/scripted", [], ["is not run here", "refs/convert/parquet"]),
        ("hf://lab", [], ["hf://datasets/OWNER/NAME"]),
        ("hf://models/lab/clip", [], ["hf://datasets/OWNER/NAME"]),
    ],
)
def test_what_cannot_be_read_is_one_line(server, files, tmp_path, source, more, said):
    for name in ("private", "gated"):
        setattr(server.publish(f"lab/{name}", files), name, True)
    server.publish("lab/scripted", {"scripted.py": b"import datasets", "data.bin": b"x"})
    done = build(source, tmp_path / "out", server, *more)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr[-2000:]
    assert [word for word in said if word not in lines[0]] == [], lines[0]
    assert not (tmp_path / "out").exists()


def test_a_token_opens_what_is_private(server, files, tmp_path):
    server.publish("lab/private", files).private = True
    out = tmp_path / "out"
    done = build("hf://lab/private/tars", out, server, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, files, "tars", tmp_path)


def test_without_a_network_it_says_so(server, tmp_path):
    done = build("hf://lab/drawings", tmp_path / "out", server, HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr
    done = build("hf://lab/drawings", tmp_path / "out", server, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_index_says_that_tars_must_be_here(tmp_path, server):
    called = command("", tmp_path / "out", server)
    called["args"] = [*called["args"][:3], "index", "hf://lab/drawings/tars", "--out", "x"]
    done = subprocess.run(**called, timeout=60)
    assert done.returncode == 2 and "on this machine only" in done.stderr
