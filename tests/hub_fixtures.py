"""Builds of datasets on a hub of the tests' own, and of the same files on disk."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture, plain_corpus
from dataset_hub import DatasetHub, dataset_hub

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
PROGRAM = [sys.executable, str(ROOT / "tests/hub_builds.py")]
FromDisk = Callable[..., tuple[dict[str, bytes], dict]]
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


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatasetHub]:
    """A hub, and one process that knows it, which imports all that a build needs only once."""
    with dataset_hub() as found:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        here = environment_of(found, tmp_path_factory.mktemp("home"))
        with subprocess.Popen(PROGRAM, env=here, **pipes) as process:
            found.builds = process
            yield found
            process.stdin.close()


@pytest.fixture
def server(hub: DatasetHub, files: dict[str, bytes]) -> DatasetHub:
    hub.forget()
    hub.publish("lab/drawings", files)
    return hub


def environment_of(server: DatasetHub, home: Path) -> dict[str, str]:
    """No address but the server's is asked for."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    here = {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return {**inherited, **here, "PYTHONPATH": str(ROOT)}


def command(source: str, out: Path, server: DatasetHub, *more: str) -> dict:
    """A build as a user starts it, in a process of its own."""
    arguments = ["build", "--source", source, "--out", str(out), *COMMON, *more]
    return {
        "args": [sys.executable, "-m", "data_prep", *arguments],
        "cwd": ROOT,
        "env": environment_of(server, out.parent / "home"),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def run(server: DatasetHub, *arguments: str, **environment: str) -> SimpleNamespace:
    """Any command in the process that is there."""
    print(json.dumps([arguments, environment]), file=server.builds.stdin, flush=True)
    status, said = json.loads(server.builds.stdout.readline())
    return SimpleNamespace(returncode=status, stderr=said)


def build(
    source: str, out: Path, server: DatasetHub, *more: str, cache: str = "cache", **environment: str
) -> SimpleNamespace:
    kept = ["--hub-cache", str(out.parent / cache)]
    arguments = ["build", "--source", source, "--out", str(out), *kept, *COMMON, *more]
    return run(server, *arguments, **environment)


def shards(out: Path) -> dict[str, bytes]:
    """All but the manifest, which says where the corpus lay."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def from_disk(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> FromDisk:
    """What a build of some of the files on disk gives; of the same, it is built once."""

    @cache
    def built(names: str, *more: str) -> tuple[dict[str, bytes], dict]:
        folder, out = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("wanted")
        for path, data in files.items():
            if path.startswith(names):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
        source = ["build", "--source", str(folder), "--out", str(out), *COMMON]
        assert main([*source, *more]) == 0
        return shards(out), read_manifest(out).provenance

    return built


def assert_as_from_disk(out: Path, from_disk: FromDisk, names: str, *more: str) -> dict:
    """The same bytes as a build of the same files on disk; returns the manifest's `hub`."""
    wanted, other = from_disk(names, *more)
    assert shards(out) == wanted and len(wanted) > 5
    found = read_manifest(out).provenance
    origin = found.pop("hub")
    assert found == other
    return origin
