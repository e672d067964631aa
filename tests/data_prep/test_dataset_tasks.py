"""`verify`, `stats` and `weigh` say the same however their work is spread or killed, and from
shards that lie far away."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus

from data_prep import records, survey, verify, weigh
from data_prep.__main__ import main
from data_prep.build.pipeline import build_dataset
from data_prep.dataset_tasks import FarOptions
from pretrain.dataset import rows
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import SampleError

ROOT = Path(__file__).parents[2]
COUNT = 60


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples in shards of 6, with a metadata column of few values and one of 60."""
    folder = tmp_path_factory.mktemp("tasks")
    columns = {
        "image": [encoded(picture(i, width=60 + i, height=50)) for i in range(COUNT)],
        "caption": ["a picture " + "of things " * (i % 7) for i in range(COUNT)],
        "artist": [f"artist {i * i % 7}" for i in range(COUNT)],
        "number": [f"number {i}" for i in range(COUNT)],
    }
    source = write_corpus(folder / "corpus.parquet", columns)
    build_dataset(options(source, folder / "out", tiers="48:90,full:95", shard_samples=6))
    return folder / "out"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of 7 rows, so that 60 are many tasks. The blocks are made in this process."""

    def blocks(count: int, least: int = 7) -> list[tuple[int, int]]:
        return rows.row_blocks(count, 7)

    for module in (survey, verify, weigh):
        monkeypatch.setattr(module, "row_blocks", blocks)
    yield


def figures(dataset: Path, *more: str) -> dict[str, object]:
    """What `stats` writes."""
    file = dataset.parent / "figures.json"
    file.unlink(missing_ok=True)
    assert main(["stats", str(dataset), "--json", str(file), *more]) == 0
    found: dict[str, object] = json.loads(file.read_text())
    return found


def weights(dataset: Path, column: str, *more: str) -> np.ndarray:
    words = ["weigh", str(dataset), "--by", column, "--out", "w", "--alpha", "0.3", *more]
    assert main(words) == 0
    return np.load(dataset / "weights/w.npy")


def shares(command: list[str], count: int = 3) -> Iterator[list[str]]:
    for number in range(count):
        yield [*command, "--task-index", str(number), "--task-count", str(count), "--workers", "1"]


@pytest.mark.parametrize("samples", [[], ["--samples", "31"]])
def test_stats_are_the_same_to_the_digit(copy: Path, samples: list[str], capsys) -> None:
    one = figures(copy, "--workers", "1", *samples)
    assert figures(copy, "--workers", "2", *samples) == one
    for words in shares(["stats", str(copy), *samples]):
        capsys.readouterr()
        assert main(words) == 0
        assert "joins them" in capsys.readouterr().out
    assert figures(copy, *samples) == one
    assert "were done by an earlier start" in capsys.readouterr().err
    assert not (copy / ".work").exists()


@pytest.mark.parametrize("column", ["artist", "number"])
def test_weights_are_those_of_a_count_of_the_values(copy: Path, column: str, capsys) -> None:
    found = weights(copy, column, "--workers", "1")
    table = capsys.readouterr().out
    values = [one["meta"][column] for one in details(copy)]
    sizes = {value: values.count(value) for value in values}
    total = sum(float(size) ** 0.3 for size in sizes.values())
    wanted = [sizes[value] ** 0.3 / total * COUNT / sizes[value] for value in values]
    assert np.allclose(found, wanted, rtol=1e-6), np.abs(found - wanted).max()
    largest = max(sizes, key=lambda value: sizes[value])  # of equal ones the first
    assert table.splitlines()[1].startswith(f'"{largest}"')
    assert (weights(copy, column, "--workers", "2") == found).all()
    again = capsys.readouterr().out
    assert again == table
    for words in shares(["weigh", str(copy), "--by", column, "--out", "v"]):
        assert main(words) == 0
    capsys.readouterr()
    assert (weights(copy, column) == found).all()
    assert capsys.readouterr().out == table
    assert not (copy / "weights/v.npy").exists() and not (copy / ".work").exists()


def details(dataset: Path) -> list[dict]:
    """The samples' json members, as tar finds them."""
    found = []
    for path in sorted((dataset / read_manifest(dataset).text_tier).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(json.load(file))
    return found


def damage(dataset: Path) -> None:
    for shard in ("48/00002.tar", "full/00007.tar"):
        content = bytearray((dataset / shard).read_bytes())
        content[700] ^= 1
        (dataset / shard).write_bytes(content)
    (dataset / "48/00005.tar").unlink()


def faults(capsys, words: list[str], code: int) -> list[str]:
    capsys.readouterr()
    assert main(words) == code
    return [line for line in capsys.readouterr().out.splitlines() if "joins them" not in line]


def test_verify_finds_the_same_in_shares_and_by_two(copy: Path, capsys) -> None:
    command = ["verify", str(copy)]
    assert faults(capsys, [*command, "--workers", "2"], 0) == [
        f"{copy}: everything is as its manifest says"
    ]
    damage(copy)
    one = faults(capsys, [*command, "--workers", "1"], 1)
    assert sum("sha256" in line for line in one) == 2 and any("00005" in line for line in one)
    assert sorted(faults(capsys, [*command, "--workers", "2"], 1)) == sorted(one)
    found: list[str] = []
    for words in shares(command):
        code = main(words)
        lines = capsys.readouterr().out.splitlines()
        assert code == (len(lines) > 1) and "joins them" in lines[-1]
        found += lines[:-1]
    assert sorted(found) == sorted(one)
    assert sorted(faults(capsys, command, 1)) == sorted(one)
    assert not (copy / ".work").exists()


def test_a_shard_that_was_put_back_is_read_again(built: Path, copy: Path, capsys) -> None:
    damage(copy)
    for words in shares(["verify", str(copy)]):
        main(words)
    for shard in ("48/00002.tar", "full/00007.tar", "48/00005.tar"):
        shutil.copyfile(built / shard, copy / shard)
    assert main(["verify", str(copy), "--workers", "1"]) == 0
    told = capsys.readouterr().err
    checks = 2 + -(-COUNT // 7) + 2 * 10
    assert f"{checks - 3} of {checks} checks were done by an earlier start" in told


def test_a_killed_verify_goes_on(built: Path, copy: Path, capsys) -> None:
    """Killed after a few shards, by -9; each shard takes a while there."""
    code = (
        "import sys, time; import data_prep.verify_tasks as v\n"
        "from data_prep.__main__ import main\n"
        "check = v.verify_shard\n"
        "def slow(*a):\n    time.sleep(0.1); return check(*a)\n"
        "v.verify_shard = slow\n"
        "main(['verify', sys.argv[1], '--workers', '1'])"
    )
    damage(copy)
    process = subprocess.Popen([sys.executable, "-c", code, str(copy)], cwd=ROOT)
    while len(list((copy / ".work").glob("verify-*/*.npz"))) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    capsys.readouterr()
    work = next((copy / ".work").iterdir())
    kept = len(list(work.glob("*.npz")))
    # In the blocks that were killed: the same request, so that what it did is used.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "row_blocks", rows.row_blocks)
        assert main(["verify", str(copy), "--workers", "2"]) == 1
    told = capsys.readouterr()
    assert f"{kept} of 23 checks were done by an earlier start" in told.err
    assert sorted(told.out.splitlines()) == sorted(faults(capsys, ["verify", str(copy)], 1))
    assert not (copy / ".work").exists()


def test_a_share_needs_a_place_where_the_others_see_it(copy: Path, monkeypatch, capsys) -> None:
    """A dataset that cannot be written is verified all the same, but by one start alone."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(records, "locked", refuse)
    assert main(["verify", str(copy), "--workers", "1"]) == 0
    assert main([*next(shares(["verify", str(copy)]))]) == 2
    assert "leave out --task-index" in capsys.readouterr().err


def test_a_missing_column_is_named_by_every_process(copy: Path, capsys) -> None:
    for workers in ("1", "2"):
        words = ["weigh", str(copy), "--by", "painter", "--out", "w", "--workers", workers]
        assert main(words) == 2
        assert "--by painter" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--shards-url=http://x needs .* --shards-cache"):
        FarOptions(shards_url="http://x")
    error = pickle.loads(pickle.dumps(SampleError("crc_mismatch", "0a", "member jpg")))
    assert (error.reason, error.key, str(error)) == (
        *("crc_mismatch", "0a"),
        "sample 0a: crc_mismatch (member jpg)",
    )
