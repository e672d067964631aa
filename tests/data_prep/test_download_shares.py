"""`data_prep download --task-index`: shares of a table, and the page of what was lost."""

import random
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

import link_server
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption
from test_download import KINDS, PYTHON, QUICK, REPOSITORY, fetch, files_of, pytestmark, site

from data_prep.__main__ import main
from data_prep.download import page
from data_prep.download.link_tables import Columns
from data_prep.download.page import Lost, read_lost, write_page
from data_prep.download.shares import stage_share
from data_prep.pool import ShareOptions, share_of
from pretrain.dataset.manifest import read_manifest

real = pytestmark
del pytestmark  # most of what follows needs no img2dataset
__all__ = ["site"]  # a fixture


@pytest.mark.parametrize("count", [1, 3, 7, 60])
def test_shares_together_are_the_table_in_order(count, tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    numbers = list(range(50))
    for name, rows in (("0.a", numbers[:23]), ("1.b", numbers[23:24]), ("2.c", numbers[24:])):
        columns = {"url": [f"http://h/{i}" for i in rows], "text": [caption(i) for i in rows]}
        table = pa.table({**columns, "nested": [[i] for i in rows], "n": rows})
        pq.write_table(table, tables / f"{name}.parquet", row_group_size=4)
    columns = Columns(url="url", caption="text", kept=["n"], dropped=["nested"])
    found = []
    for share in range(count):
        rows = share_of(50, ShareOptions(task_index=share, task_count=count))
        folder = tmp_path / f"{count}.{share}"
        stage_share(tables, rows, columns, None, folder)
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        stage_share(tables, rows, columns, None, folder)  # again, as after a kill
        assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        for path in sorted(folder.iterdir()):
            found += pq.read_table(path, columns=["n"])["n"].to_pylist()
    assert found == numbers


def words(table: Path, out: Path, share: int) -> list[str]:
    return [str(table), str(out), "--python", str(PYTHON), *QUICK,
            "--task-index", str(share), "--task-count", "2"]  # fmt: skip


@real
def test_shares_at_once_are_one_download(site, tmp_path, capsys):
    """One is killed and goes on; of two of the same share, one waits."""
    tables, out, data = tmp_path / "tables", tmp_path / "out", tmp_path / "data"
    tables.mkdir()
    links = [f"{site}/{kind}/{i}.jpg" for i, kind in enumerate(KINDS)]
    for number, part in enumerate((slice(0, 11), slice(11, None))):
        texts = [caption(i) for i in range(18)][part]
        table = pa.table({"url": links[part], "caption": texts, "year": [2014] * len(texts)})
        pq.write_table(table, tables / f"{number}.parquet")
    command = [sys.executable, "-m", "data_prep", "download"]
    killed = subprocess.Popen([*command, *words(tables, out, 1)], cwd=REPOSITORY)
    until = time.monotonic() + 60
    while not list(out.glob("share-00001/.download/log.txt")) and time.monotonic() < until:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    with subprocess.Popen(
        [*command, *words(tables, out, 1)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert main(["download", *words(tables, out, 0)]) == 0
        told = waiting.stderr.read()
    assert waiting.returncode == 0 and "waiting for the share" in told, told
    capsys.readouterr()
    link_server.REQUESTS.clear()
    html = tmp_path / "lost.html"
    assert main(["download", *words(tables, out, 0), "--page", str(html)]) == 0
    assert not link_server.REQUESTS, "a finished share asks for nothing"
    assert f"build --source {out}" in capsys.readouterr().out
    came = [files_of(out / f"share-{share:05d}") for share in range(2)]
    assert not came[0].keys() & came[1].keys()
    expected = {
        str(i): link_server.body(f"/{kind}/{i}.jpg")[2]
        for i, kind in enumerate(KINDS)
        if kind in ("good", "png", "page", "cut", "named")
    }
    assert came[0] | came[1] == expected
    assert main(["build", "--source", str(out), "--out", str(data), "--tiers", "full:95"]) == 0
    failed = {"http_404": 2, "http_500": 1, "robots_tag": 1, "timeout": 1}
    manifest = read_manifest(data)
    assert manifest.provenance["downloads"] == {"links": 18, "downloaded": 13, "failed": failed}
    assert manifest.samples == 11
    text = html.read_text()
    assert "<td>http_404</td><td>2</td>" in text and "<td>2014</td><td>18</td><td>13</td>" in text
    capsys.readouterr()
    assert fetch(tables, out) == 2, "without shares it is another download"
    assert "options.task_count" in capsys.readouterr().err


def test_the_page_counts_every_link_once(tmp_path):
    """Against counts by plain Python."""
    draw = random.Random(0)
    messages = ["HTTP Error 404: Not Found", "<urlopen error timed out>", "hash mismatch"]
    messages += ["<urlopen error [Errno -2] Name or service not known>", "image decoding error"]
    reasons = ["http_404", "timeout", "hash_mismatch", "unknown_host", "undecodable"]
    hosts, years, lost = (Counter[str]() for _ in range(3))
    alive: dict[str, Counter[str]] = {"host": Counter(), "year": Counter()}
    for shard in range(3):
        rows = []
        for _ in range(500):
            host, year = f"h{draw.randrange(40)}.org", draw.randrange(2008, 2016)
            failed = draw.randrange(5) if draw.random() < 0.4 else None
            link = f"http://{draw.choice(['', 'me@'])}{draw.choice([host, host.upper()])}"
            link += draw.choice([":8080/a.jpg?u=http://other.org/", "/b", ""])
            message = None if failed is None else messages[failed]
            status = "success" if failed is None else "failed_to_download"
            when = date(year, 5, 2)
            rows.append({"url": link, "date": when, "status": status, "error_message": message})
            hosts[host] += 1
            years[str(year)] += 1
            if failed is None:
                alive["host"][host] += 1
                alive["year"][str(year)] += 1
            else:
                lost[reasons[failed]] += 1
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{shard:05d}.parquet")
        (tmp_path / f"{shard:05d}_stats.json").touch()
    found = read_lost([tmp_path])
    assert (found.tried, found.alive) == (1500, 1500 - lost.total())
    assert found.reasons == lost and found.year_column == "date"
    assert found.hosts == {"tried": hosts, "alive": alive["host"]}
    assert found.years == {"tried": years, "alive": alive["year"]}
    (tmp_path / "00002_stats.json").unlink()
    assert read_lost([tmp_path]).tried == 1000, "one without statistics is half written"
    write_page(tmp_path / "page.html", tmp_path, [tmp_path], 1500)
    assert "500 not tried yet" in (tmp_path / "page.html").read_text()


def test_hosts_beyond_those_in_memory_leave_the_largest_right(monkeypatch):
    monkeypatch.setattr(page, "_HOSTS", 40)
    hosts = [f"large{i}" for i in range(5)] * 30 + [f"small{i}" for i in range(100)]
    lost = Lost()
    for part in range(10):
        links = [f"http://{host}/{part}" for host in hosts[part::10]]
        links += [f"http://large{i}/" for i in range(5)]
        rows = {
            "url": links,
            "status": ["success"] * len(links),
            "error_message": [None] * len(links),
        }
        lost.add(pl.DataFrame(rows))
    assert lost.folded and len(lost.hosts["tried"]) <= 40
    assert lost.hosts["alive"].most_common(5) == lost.hosts["tried"].most_common(5)
    assert dict(lost.hosts["tried"].most_common(5)) == {f"large{i}": 40 for i in range(5)}
