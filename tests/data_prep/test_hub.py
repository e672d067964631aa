"""A dataset on a hub is built as the same files on disk are."""

import hashlib
import signal
import subprocess
import time
from collections import Counter

import pytest
from dataset_hub import TOKEN
from hub_commands import assert_as_from_disk, build, command

from pretrain.dataset.manifest import read_manifest

pytest_plugins = ["hub_fixtures"]


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


@pytest.mark.soak
def test_tars_by_pattern_with_room_for_one_in_the_cache(server, from_disk, tmp_path):
    out = tmp_path / "out"
    small = ["--cache-gib", "0", "--workers", "2"]
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


def copy_of(content: bytes, suffix: str) -> str:
    return hashlib.sha256(content).hexdigest()[:32] + suffix


def test_a_file_in_the_cache_that_is_not_whole_is_brought_again(server, files, from_disk, tmp_path):
    out = tmp_path / "out"
    assert build("hf://lab/drawings/tars", out, server).returncode == 0
    (tar,) = (tmp_path / "cache").rglob(copy_of(files["tars/00001.tar"], ".tar"))
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
    assert list((tmp_path / "home/clipa-pretrain").rglob("*.parquet"))
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


def test_a_token_opens_what_is_private(server, files, from_disk, tmp_path):
    server.publish("lab/private", files).private = True
    out = tmp_path / "out"
    done = build("hf://lab/private/tars", out, server, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_as_from_disk(out, from_disk, "tars")
