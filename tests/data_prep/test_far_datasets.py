"""A dataset whose shards lie far away is verified, counted, weighed and exported as one nearby."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus
from far_server import Server

from data_prep.__main__ import main
from data_prep.build.pipeline import build_dataset
from pretrain.dataset import shards

COUNT = 30


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("there")
    columns = {
        "image": [encoded(picture(i, width=60 + i, height=50)) for i in range(COUNT)],
        "caption": ["a picture " + "of things " * (i % 7) for i in range(COUNT)],
        "artist": [f"artist {i % 4}" for i in range(COUNT)],
    }
    source = write_corpus(folder / "corpus.parquet", columns)
    build_dataset(options(source, folder / "out", tiers="48:90,full:95", shard_samples=6))
    return folder / "out"


@pytest.fixture
def server(there: Path) -> Iterator[Server]:
    server = Server(there)
    yield server
    server.close()


@pytest.fixture
def near(server: Server, tmp_path: Path) -> Path:
    assert main(["fetch", str(tmp_path / "near"), "--url", server.url]) == 0
    return tmp_path / "near"


@pytest.fixture
def far(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(shards, "_RETRY_AFTER_S", (0.001, 0.001))
    return ["--shards-url", server.url, "--shards-cache", str(tmp_path / "cache")]


def test_each_command_finds_what_it_finds_nearby(
    there: Path, near: Path, far: list[str], server: Server, tmp_path: Path, capsys
) -> None:
    local = Path(shutil.copytree(there, tmp_path / "local"))
    table = tmp_path / "table.parquet"
    artists = [f"artist {i}" for i in range(4)]
    pl.DataFrame({"artist": artists, "text": [f"drawn by {i}" for i in artists]}).write_parquet(
        table
    )
    found: dict[Path, list[object]] = {}
    for folder, more in ((local, []), (near, far)):
        spread, by_two = [*more, "--workers", "1"], [*more, "--workers", "2"]
        out = Path(f"{folder}.out")
        capsys.readouterr()
        assert main(["verify", str(folder), *by_two]) == 0
        assert "everything is as its manifest says" in capsys.readouterr().out
        figures = Path(f"{folder}.json")
        assert main(["stats", str(folder), "--json", str(figures), *by_two]) == 0
        assert main(["weigh", str(folder), "--by", "artist", "--out", "w", *spread]) == 0
        assert main(["export", str(folder), str(out), *spread]) == 0
        given = ["--source", str(table), "--key", "artist", "--match", "artist"]
        told = ["recaption", str(folder), *given, "--caption", "later={text}", *spread]
        assert main(told) == 0
        page = Path(f"{folder}.html")
        assert main(["inspect", str(folder), "--out", str(page), *spread]) == 0
        assert main(["dedup", str(folder), "--caption-cap", "3", "--out", "d", *spread]) == 0
        found[folder] = [
            json.loads(figures.read_text()),
            *(np.load(folder / f"weights/{name}.npy").tolist() for name in "wd"),
            *(path.read_bytes() for path in sorted(out.glob("*.tar"))),
            page.read_text().count("data:image/jpeg"),
            np.load(folder / "hashes/views.npy").tolist(),
        ]
    assert found[local] == found[near] and len(found[near]) > 5
    assert not list(near.rglob("*.tar"))
    files = [name for name in server.asked if name.endswith(".tar")]
    assert len(files) == 10 and {server.asked[name] for name in files} == {1}


def test_damage_far_away_is_named_by_its_address(
    there: Path, tmp_path: Path, far: list[str], capsys
) -> None:
    broken = Path(shutil.copytree(there, tmp_path / "broken"))
    content = bytearray((broken / "48/00002.tar").read_bytes())
    content[700] ^= 1
    (broken / "48/00002.tar").write_bytes(content)
    server = Server(broken)
    try:
        assert main(["fetch", str(tmp_path / "near"), "--url", server.url]) == 0
        capsys.readouterr()
        words = ["verify", str(tmp_path / "near"), "--shards-url", server.url, *far[2:]]
        assert main([*words, "--workers", "1"]) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert f"{server.url}/48/00002.tar" in line and "sha256" in line
        few = ["--shards-cache-gib", "0.00005", "--workers", "2"]
        assert main([*words, *few]) == 2
        assert "--shards-cache-gib=5e-05 has no room" in capsys.readouterr().err
    finally:
        server.close()


def test_what_was_not_brought_is_named(near: Path, far: list[str], capsys) -> None:
    capsys.readouterr()
    assert main(["stats", str(near), *far[:2]]) == 2
    assert "add --shards-cache" in capsys.readouterr().err
    shutil.rmtree(near / "48")
    assert main(["stats", str(near), *far, "--workers", "1"]) == 2
    assert "data_prep fetch" in capsys.readouterr().err
