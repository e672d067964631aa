"""A dataset on a hub is built as the same files on disk are; what hinders it is one line."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture, plain_corpus
from dataset_hub import TOKEN, DatasetHub, dataset_hub

from data_prep.__main__ import main
from data_prep.sources.hub_address import asking
from data_prep.sources.hub_files import persistently
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
        program = [sys.executable, str(ROOT / "tests/hub_builds.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        home = environment_of(found, tmp_path_factory.mktemp("home"))
        with subprocess.Popen(program, env={**home, "PYTHONPATH": str(ROOT)}, **pipes) as process:
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
    return {**inherited, **here}


def command(source: str, out: Path, server: DatasetHub, *more: str, **environment: str) -> dict:
    """A build as a user starts it, in a process of its own."""
    arguments = ["build", "--source", source, "--out", str(out), *COMMON, *more]
    return {
        "args": [sys.executable, "-m", "data_prep", *arguments],
        "cwd": ROOT,
        "env": {**environment_of(server, out.parent / "home"), **environment},
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


def test_a_split_of_parquet_files(server, from_disk, tmp_path):
    out = tmp_path / "out"
    some = ["--where", "number % 7 <> 3", "--caption", "a={caption}", "--caption", "b=no {split}"]
    done = build("hf://datasets/lab/drawings", out, server, "--hub-split", "train", *some)
    assert done.returncode == 0, done.stderr[-2000:]
    origin = assert_as_from_disk(out, from_disk, "data/train", *some)
    commit = server.datasets["lab/drawings"].branches["main"]
    assert origin == {
        "address": "hf://datasets/lab/drawings@main", "commit": commit, "hub_split": "train",
    }  # fmt: skip
    assert commit[:12] in done.stderr
    assert not [path for path, _ in server.content.sent if "test" in path or path.endswith("tar")]


def test_tars_by_pattern_with_room_for_one_in_the_cache(server, from_disk, tmp_path):
    out = tmp_path / "out"
    small = ["--hub-cache-gib", "0", "--workers", "2"]
    done = build("hf://lab/drawings/tars/0000[012].tar", out, server, *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, from_disk, "tars")
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1
    # To be looked through, for the tokenizer, and for each of the two tasks that read some of it.
    times = Counter(path for path, _ in server.content.sent)
    assert len(times) == 3 and max(times.values()) <= 4, times
    assert sum(times.values()) > 6, times  # they had gone


def test_who_goes_on_brings_no_tar_to_look_through_it(server, from_disk, tmp_path):
    out = tmp_path / "out"
    asked = ("hf://lab/drawings/tars", out, server)
    shares = ["--task-count", "3", "--task-index"]
    assert build(*asked, *shares, "2", cache="first").returncode == 0
    server.content.sent.clear()
    done = build(*asked, *shares, "1", cache="second")  # tasks 1 and 2 of 5: rows 8 to 24
    assert done.returncode == 0, done.stderr[-2000:]
    assert Counter(path for path, _ in server.content.sent) == {
        "tars/00000.tar": 1, "tars/00001.tar": 1,
    }  # fmt: skip
    assert build(*asked, cache="third").returncode == 0
    assert_as_from_disk(out, from_disk, "tars")
    server.content.sent.clear()
    again = build(*asked, cache="fourth")
    assert again.returncode == 0 and "is finished" in again.stderr
    other = build(*asked, "--caption", "caption={key}", cache="fourth")
    assert other.returncode == 2 and "options.captions.caption" in other.stderr
    assert server.content.sent == []


def test_a_file_in_the_cache_that_is_not_whole_is_brought_again(server, from_disk, tmp_path):
    out = tmp_path / "out"
    assert build("hf://lab/drawings/tars", out, server).returncode == 0
    (tar,) = (tmp_path / "cache").rglob("00001.tar")
    tar.write_bytes(tar.read_bytes()[:5000])
    server.content.sent.clear()
    done = build("hf://lab/drawings/tars", out, server, "--overwrite")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path for path, _ in server.content.sent] == ["tars/00001.tar"]
    assert_as_from_disk(out, from_disk, "tars")


def test_each_file_is_brought_once_where_there_is_room(server, files, from_disk, tmp_path):
    out = tmp_path / "out"
    done = build("hf://datasets/lab/drawings/tars", out, server, "--workers", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path for path, _ in server.content.sent) == sorted(
        name for name in files if name.endswith(".tar")
    )
    assert_as_from_disk(out, from_disk, "tars")


def test_killed_it_goes_on_at_its_commit_though_the_branch_moved(
    server, files, from_disk, tmp_path
):
    out = tmp_path / "out"
    asked = ("hf://lab/drawings/data/train-*", out, server)
    first = server.datasets["lab/drawings"].branches["main"]
    process = subprocess.Popen(**command(*asked))  # keeps files where huggingface_hub does
    while process.poll() is None and not list((out / ".build").glob("00000[1-9]/0.json")):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    other = {**files, "data/train-0.parquet": files["data/test-0.parquet"]}
    server.publish("lab/drawings", other)
    shares = ["--task-count", "2", "--task-index"]
    assert list((tmp_path / "home/clipa-pretrain").rglob("train-0.parquet"))
    assert build(*asked, *shares, "1").returncode == 0  # another machine, with a cache of its own
    done = build(*asked)
    assert done.returncode == 0, done.stderr[-2000:]
    assert assert_as_from_disk(out, from_disk, "data/train")["commit"] == first
    again = build(*asked)
    assert again.returncode == 0 and "is finished" in again.stderr
    assert build(*asked, "--overwrite").returncode == 0
    assert read_manifest(out).provenance["hub"]["commit"] != first


def test_what_comes_damaged_is_asked_for_again(server, from_disk, tmp_path):
    server.content.cut = server.content.spoilt = 1
    out = tmp_path / "out"
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 0, done.stderr[-2000:]
    assert server.content.cut == server.content.spoilt == 0
    assert_as_from_disk(out, from_disk, "tars")


def test_what_stays_damaged_stops_the_build_and_is_no_rejection(server, from_disk, tmp_path):
    out = tmp_path / "out"
    server.content.broken = "00001.tar"
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 2 and not (out / "manifest.json").exists()
    assert "refused (404: Entry not found)" in done.stderr and "00001.tar" in done.stderr
    server.content.broken, server.content.spoilt = "", 1000
    shutil.rmtree(tmp_path / "cache")
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 2 and not (out / "manifest.json").exists()
    assert "did not send all" in done.stderr and "00000.tar" in done.stderr
    server.content.spoilt = 0
    done = build("hf://lab/drawings/tars", out, server)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, from_disk, "tars")


@pytest.mark.parametrize("footers", [0, 2])
def test_a_connection_that_is_cut_while_parquet_is_read_is_one_line(server, tmp_path, footers):
    server.content.cut, server.content.cut_after = 1000, footers
    done = build("hf://lab/drawings/data/train-*", tmp_path / "out", server)
    *tries, said = done.stderr.splitlines()  # huggingface_hub tells of each
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert said.startswith("error: ") and not [line for line in tries if "error: " in line]
    assert "did not send all" in said and "train-0.parquet" in said
    assert len({path for path, _ in server.content.sent}) == (2 if footers else 1)
    assert server.content.cut < 1000 and not (tmp_path / "out/manifest.json").exists()


def test_a_commit_that_is_gone_is_said(server, files, tmp_path):
    asked = ("hf://lab/drawings/tars", tmp_path / "out", server)
    assert build(*asked, "--task-count", "2", "--task-index", "0").returncode == 0
    dataset = server.datasets["lab/drawings"]
    first = dataset.branches["main"]
    server.publish("lab/drawings", {**files, "README.md": b"squashed"})
    del dataset.commits[first]
    done = build(*asked)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert first in done.stderr and "--overwrite" in done.stderr
    assert build(*asked, "--overwrite").returncode == 0


def test_what_a_file_system_of_the_hub_does_not_find_is_not_asked_for_again():
    asked = []

    def missing() -> None:
        asked.append(1)
        raise FileNotFoundError("datasets/lab/drawings/x.parquet")  # as HfFileSystem does

    said = r"no such file on .*x\.parquet.* mend --source"
    with pytest.raises(ValueError, match=said), asking("hf://lab/drawings"):
        persistently(missing)
    assert len(asked) == 1


def test_what_is_left_alone_is_counted(server, files, tmp_path):
    more = {"tars/all.tar.gz": b"x", "tars/more.zip": b"x", "tars/NOTES": b"x"}
    server.publish("lab/drawings", {**files, **more})
    done = build("hf://lab/drawings/tars", tmp_path / "out", server)
    assert done.returncode == 0, done.stderr[-2000:]
    (note,) = [line for line in done.stderr.splitlines() if "left alone" in line]
    assert [word for word in ("1 .gz", "1 .zip", "1 tars/NOTES") if word not in note] == [], note
    both = ("hf://lab/drawings/**", tmp_path / "both", server)
    done = build(*both)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "3 .parquet" in done.stderr and "3 .tar" in done.stderr and "--format" in done.stderr
    done = build(*both, "--format", "parquet")
    assert done.returncode == 0 and "3 .tar" in done.stderr, done.stderr[-2000:]
    assert read_manifest(tmp_path / "both").samples == 50


@pytest.mark.parametrize("option", ["config", "split", "cache"])
def test_options_of_the_hub_for_a_source_here_are_refused(tmp_path, capsys, option):
    source = plain_corpus(tmp_path / "all.parquet", 1)
    arguments = ["build", "--source", str(source), "--out", str(tmp_path / "out")]
    assert main([*arguments, f"--hub-{option}", "x"]) == 2
    said = capsys.readouterr().err
    assert f"leave out --hub-{option}" in said and not (tmp_path / "out").exists()


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


def test_a_token_opens_what_is_private(server, files, from_disk, tmp_path):
    server.publish("lab/private", files).private = True
    out = tmp_path / "out"
    done = build("hf://lab/private/tars", out, server, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, from_disk, "tars")


def test_without_a_network_it_says_so(server, tmp_path):
    def in_its_own(**environment: str) -> subprocess.CompletedProcess:
        asked = command("hf://lab/drawings", tmp_path / "out", server, **environment)
        return subprocess.run(**asked, timeout=60)

    done = in_its_own(HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr
    done = in_its_own(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_index_says_that_tars_must_be_here(tmp_path, server):
    done = run(server, "index", "hf://lab/drawings/tars", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "on this machine only" in done.stderr
    assert server.content.sent == [] and not (tmp_path / "out").exists()
