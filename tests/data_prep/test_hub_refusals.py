"""What hinders a build of a dataset on a hub is one line; nothing is left out in silence."""

import json
import shutil
import subprocess

import pytest
from data_prep_corpus import plain_corpus
from hub_commands import PROGRAM, assert_as_from_disk, build, environment_of, run

from data_prep.__main__ import main
from data_prep.sources.hub_address import HUB, parse_address
from pretrain.dataset.manifest import read_manifest

pytest_plugins = ["hub_fixtures"]


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

    said = r"no such file on .*x\.parquet.* change --source"
    with pytest.raises(ValueError, match=said), HUB.asking("hf://lab/drawings"):
        HUB.persistently(missing)
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


@pytest.mark.parametrize("option", ["config", "split"])
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


def test_without_a_network_it_says_so(server, tmp_path):
    asked = ["build", "--source", "hf://lab/drawings", "--out", str(tmp_path / "out")]

    def said(**environment: str) -> str:
        """In a process of its own: huggingface_hub reads these once."""
        env = {**environment_of(server, tmp_path), **environment}
        pipes = {"input": json.dumps([asked, {}]), "capture_output": True, "text": True}
        status, told = json.loads(subprocess.run(PROGRAM, env=env, **pipes).stdout)
        assert status == 2 and len(told.strip().splitlines()) == 1, told
        return told

    assert "HF_HUB_OFFLINE is set" in said(HF_HUB_OFFLINE="1")
    nowhere = "http://127.0.0.1:9"
    assert f"{nowhere} cannot be reached" in said(HF_ENDPOINT=nowhere)


def test_index_says_that_tars_must_be_here(tmp_path, server):
    done = run(server, "index", "hf://lab/drawings/tars", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "on this machine only" in done.stderr
    assert server.content.sent == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "rest",
    ["datasets/../..", "o/..", "../n", "o/n@../../x", "o/n@..", "o/n@%2e%2e%2fx", "o/n/a/../../b",
     "o/n/./x", "o/n@refs/pr/..", "datasets/o/n@main/..", "o/n/%2e%2e/x"],
)  # fmt: skip
def test_an_address_leads_out_of_nothing(rest):
    with pytest.raises(ValueError, match="change --source") as told:
        parse_address(f"hf://{rest}")
    assert "\n" not in str(told.value)
    assert parse_address("hf://o.x/n..y@v1..2/a..b/..c").path == "a..b/..c"
