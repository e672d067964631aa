"""`verify` names what is wrong with a dataset, and says nothing else."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import options, plain_corpus

from data_prep.__main__ import main
from data_prep.build.pipeline import build_dataset
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    source = plain_corpus(folder / "corpus.parquet", 12)
    build_dataset(options(source, folder / "out", tiers="48:90,full:95", shard_samples=12))
    assert main(["verify", str(folder / "out")]) == 0
    return folder / "out"


def change_manifest(folder: Path, change) -> None:
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def change_index(folder: Path, change) -> None:
    """A wrong index under a checksum that is right."""
    path = folder / "full" / INDEX_FILE
    rows = np.load(path)
    np.save(path, change(rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(folder, lambda m: m["tiers"]["full"].update(index_sha256=digest))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_token_count(rows: np.ndarray) -> np.ndarray:
    rows["tokens"][3] += 1
    return rows


def other_key(rows: np.ndarray) -> np.ndarray:
    rows["key"][3] = b"0" * 16
    return rows


def other_place(rows: np.ndarray) -> np.ndarray:
    rows["json"][3] = rows["json"][4]
    return rows


def one_sample_more(manifest: dict) -> None:
    manifest["samples"] += 1


def all_samples_one_more(manifest: dict) -> None:
    manifest["samples"] += 1
    for tier in manifest["tiers"].values():
        tier["shards"][-1]["samples"] += 1


DAMAGE = {
    "a flipped byte": (lambda d: flip(d / "48" / "00000.tar", 700), "48/00000.tar", "sha256"),
    "a missing shard": (lambda d: (d / "48/00000.tar").unlink(), "48/00000.tar", "No such file"),
    "a cut shard": (lambda d: cut(d / "full/00000.tar"), "full/00000.tar", "bytes"),
    "a cut index": (lambda d: cut(d / "full" / INDEX_FILE), "full/index.npy", "sha256"),
    "a missing index": (lambda d: (d / "48" / INDEX_FILE).unlink(), "48/index.npy", "No such"),
    "a count": (lambda d: change_manifest(d, one_sample_more), "manifest.json", "13"),
    "all counts": (lambda d: change_manifest(d, all_samples_one_more), "index.npy", "12 rows"),
    "a row too few": (lambda d: change_index(d, lambda r: r[:-1]), "full/index.npy", "11 rows"),
    "a token count": (lambda d: change_index(d, other_token_count), "index.npy", "token counts"),
    "another key": (lambda d: change_index(d, other_key), "full/index.npy", "keys"),
    "a text's place": (lambda d: change_index(d, other_place), "full/index.npy", "texts"),
    "a picture alone": (lambda d: flip(d / "full/00000.tar", 700), "full/00000.tar", "sha256"),
    "the tokenizer": (lambda d: flip(d / "tokenizer.model", 50), "tokenizer.model", "sha256"),
    "a stray shard": (
        lambda d: shutil.copy(d / "48/00000.tar", d / "48/00001.tar"),
        "48/00001.tar",
        "does not name it",
    ),
    "no manifest": (lambda d: (d / MANIFEST_FILE).unlink(), "manifest.json", "not a finished"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, where, what = DAMAGE[name]
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    damage(folder)
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(where in line and what in line for line in lines), lines


def test_a_full_temporary_folder_is_named_with_its_variable(
    sound, small_disk, monkeypatch, capsys
) -> None:
    folder, grow = small_disk
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with (folder / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    assert main(["verify", str(sound), "--workers", "1"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    for word in (str(folder), "no space left", "12 rows", "TMPDIR"):
        assert word.lower() in told.lower(), told
    grow()
    assert main(["verify", str(sound), "--workers", "1"]) == 0
