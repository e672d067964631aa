"""A hub with a dataset, and what builds of the same files on disk give."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cache

import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture, plain_corpus
from dataset_hub import DatasetHub, dataset_hub
from hub_commands import COMMON, PROGRAM, FromDisk, environment_of, shards

from data_prep.__main__ import main
from pretrain.dataset.manifest import read_manifest

CARD = b"""---
configs:
- config_name: drawings
  data_files:
  - {split: train, path: "data/train-*.parquet"}
  - {split: test, path: "data/test-*.parquet"}
---
"""


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
