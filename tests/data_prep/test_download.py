"""`data_prep download` with the real img2dataset against a web server on loopback.

Needs img2dataset in this environment, or in that of the interpreter that IMG2DATASET_PYTHON names
(requirements-download.txt).
"""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path

import link_server
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, picture
from PIL import Image

from data_prep.__main__ import main
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.rows import text_tier

REPOSITORY = Path(__file__).parents[2]
PYTHON = os.environ.get("IMG2DATASET_PYTHON") or (
    sys.executable if find_spec("img2dataset") else None
)
pytestmark = pytest.mark.skipif(
    PYTHON is None,
    reason="img2dataset is not installed here; IMG2DATASET_PYTHON names an interpreter that has it "
    "(requirements-download.txt)",
)
KINDS = ["good"] * 9 + ["png", "gone", "gone", "broken", "page", "cut", "slow", "noai", "named"]
SLOW_KINDS = ["good"] * 8 + ["slow"] * 8 + ["good"] * 8
QUICK = ["--timeout-s", "2", "--retries", "1", "--shard-links", "8", "--processes", "1"]
QUICK += ["--private-addresses", "true"]  # the server is on loopback


@pytest.fixture(scope="module")
def site():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        with link_server.serving() as address:
            yield address


def write_table(path: Path, site: str, kinds: list[str] = KINDS) -> Path:
    """As LAION's, with a column whose name img2dataset keeps for itself."""
    count = range(len(kinds))
    links = [f"{site}/{kind}/{i}.jpg" for i, kind in enumerate(kinds)]
    columns = {"URL": links, "TEXT": [caption(i) for i in count], "width": list(count)}
    pq.write_table(pa.table({**columns, "similarity": [i / 10 for i in count]}), path)
    return path


def fetch(table: Path, out: Path, *options: str) -> int:
    return main(["download", str(table), str(out), "--python", str(PYTHON), *QUICK, *options])


def files_of(out: Path) -> dict[str, bytes]:
    """The pictures that came, by number of the link."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            read = {member.name: tar.extractfile(member).read() for member in tar}
        for name, content in read.items():
            if name.endswith(".json"):
                link = json.loads(content)["url"].rpartition("/")[2]
                found[link.partition(".")[0]] = read[name.replace(".json", ".jpg")]
    return found


@pytest.fixture(scope="module")
def fetched(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fetched")
    table = write_table(folder / "laion.parquet", site)
    assert fetch(table, folder / "out") == 0
    return folder


def test_what_came_is_what_was_sent_and_what_failed_is_counted(fetched, tmp_path, capsys):
    expected = {
        str(i): link_server.body(f"/{kind}/{i}.jpg")[2]
        for i, kind in enumerate(KINDS)
        if kind in ("good", "png", "page", "cut", "named")
    }
    assert files_of(fetched / "out") == expected  # byte by byte, no picture encoded again
    data = tmp_path / "data"
    assert main(["build", "--source", str(fetched / "out"), "--out", str(data)]) == 0
    built = capsys.readouterr().out
    manifest = read_manifest(data)
    failed = {"http_404": 2, "http_500": 1, "robots_tag": 1, "timeout": 1}
    assert manifest.provenance["downloads"] == {"links": 18, "downloaded": 13, "failed": failed}
    assert manifest.samples == 11
    assert {name: n for name, n in manifest.rejected.items() if n} == {
        "image_unreadable": 1,  # the page
        "image_truncated": 1,
    }
    assert main(["verify", str(data)]) == 0
    assert main(["stats", str(data), "--json", str(tmp_path / "stats.json")]) == 0
    for text in (built, capsys.readouterr().out):
        assert "13 of 18 (72.2%)" in text and "http_404" in text
    assert json.loads((tmp_path / "stats.json").read_text())["downloads"]["failed"] == failed
    reader = text_tier(data, manifest)
    texts = {content[0].decode() for content in reader.members(np.arange(11), ("txt",))}
    assert texts == {caption(i) for i, kind in enumerate(KINDS) if kind in ("good", "png", "named")}
    (details,) = next(iter(reader.members(np.arange(1), ("json",))))
    assert 0 <= json.loads(details)["meta"]["similarity"] < 1.8


def test_a_finished_download_asks_for_nothing_and_another_one_is_refused(fetched, capsys):
    link_server.REQUESTS.clear()
    assert fetch(fetched / "laion.parquet", fetched / "out") == 0
    assert not link_server.REQUESTS
    assert "13 of 18" in capsys.readouterr().out
    assert fetch(fetched / "laion.parquet", fetched / "out", "--image-px", "64") == 2
    error = capsys.readouterr().err.strip()
    assert "options.image_px" in error and "\n" not in error


def test_a_size_shrinks_only_what_is_larger_and_a_name_is_heeded(site, tmp_path):
    table = write_table(tmp_path / "table.parquet", site, ["good", "png", "named"])
    out = tmp_path / "out"
    assert fetch(table, out, "--image-px", "200", "--user-agent-token", "ourbot") == 0
    came = files_of(out)
    shrunk, small = (Image.open(io.BytesIO(came[number])) for number in ("0", "1"))
    assert min(shrunk.size) == 200 and small.size == picture(1).size
    assert shrunk.format == small.format == "JPEG" and came.keys() == {"0", "1"}


def test_a_file_of_another_sha256_is_a_failure(site, tmp_path, capsys):
    table = write_table(tmp_path / "a.parquet", site, ["good", "good"])
    right = hashlib.sha256(link_server.body("/good/0.jpg")[2]).hexdigest()
    columns = pq.read_table(table).append_column("sha256", pa.array([right, "0" * 64]))
    pq.write_table(columns, table)
    assert fetch(table, tmp_path / "out", "--sha256-column", "sha256") == 0
    assert list(files_of(tmp_path / "out")) == ["0"]
    assert "hash_mismatch" in capsys.readouterr().out


def start_and_end(table: Path, out: Path, ending: signal.Signals) -> int:
    """Ends a download while its second tar is written; returns the exit status."""
    command = [sys.executable, "-m", "data_prep", "download", str(table), str(out)]
    command += ["--python", str(PYTHON), *QUICK, "--timeout-s=30", "--retries=0"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE) as running:
        until = time.monotonic() + 60
        while not (out / "00001.tar").exists() and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(ending)
        return running.wait(30)


def test_a_download_that_was_ended_goes_on_where_it_was(site, tmp_path):
    """Its own SIGTERM leaves no process behind; the tars that are done are not asked for again."""
    table = write_table(tmp_path / "table.parquet", site, SLOW_KINDS)
    out = tmp_path / "out"
    assert start_and_end(table, out, signal.SIGTERM) == 130
    assert (out / "00000_stats.json").exists() and not (out / "00001_stats.json").exists()
    assert not any(str(out).encode() in command_of(path) for path in Path("/proc").glob("[0-9]*"))
    assert main(["build", "--source", str(out), "--out", str(tmp_path / "data")]) == 2
    # A kill of the machine may leave half a file of statistics, which img2dataset takes for done.
    (out / "00001_stats.json").write_text('{"count": 8, ')
    link_server.REQUESTS.clear()
    assert fetch(table, out, "--timeout-s=30", "--retries=0") == 0
    assert len(link_server.REQUESTS) == 16 and "/good/0.jpg" not in link_server.REQUESTS
    assert len(files_of(out)) == 24


def test_what_a_killed_command_left_running_is_waited_for(site, tmp_path):
    """Two that write the same tars would spoil them."""
    table = write_table(tmp_path / "table.parquet", site, SLOW_KINDS)
    link_server.REQUESTS.clear()
    assert start_and_end(table, tmp_path / "out", signal.SIGKILL) == -signal.SIGKILL
    assert fetch(table, tmp_path / "out", "--timeout-s=30", "--retries=0") == 0
    assert len(files_of(tmp_path / "out")) == 24
    assert set(link_server.REQUESTS.values()) == {1} and len(link_server.REQUESTS) == 24


def command_of(process: Path) -> bytes:
    """The command line of a process; empty where it has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
