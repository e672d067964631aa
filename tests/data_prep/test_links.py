"""Tables of links: what is chosen of them, and what a build tells of links that failed."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture
from test_webdataset import add, tarfile

from data_prep.__main__ import main
from data_prep.download.link_tables import choose_columns, stage_tables
from pretrain.dataset.manifest import read_manifest


def write_fetched(folder: Path, seconds: float = 1.5) -> Path:
    """Two tars as img2dataset 1.47.0 leaves them, 12 links each, 3 of which failed."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(9):
                key, seed = f"{shard:05d}{i:04d}", 9 * shard + i
                details = {"caption": caption(seed), "url": f"http://h/{seed}", "key": key}
                details |= {"status": "success", "error_message": None, "sha256": "0" * 64}
                add(tar, f"{key}.jpg", encoded(picture(seed), "JPEG"))
                add(tar, f"{key}.json", json.dumps(details, indent=4).encode())
                add(tar, f"{key}.txt", caption(seed).encode())
        messages = {
            "success": 9,
            "HTTP Error 404: Not Found": 1,
            "<urlopen error [Errno -2] Name or service not known>": shard,
            "<urlopen error timed out>": 1 - shard,
        }  # and one that was lost: img2dataset stumbled over it
        times = {"duration": seconds, "start_time": 1.0, "end_time": 1.0 + seconds}
        counts = {"count": 12, "successes": 9, "failed_to_download": 2, "failed_to_resize": 0}
        (folder / f"{shard:05d}_stats.json").write_text(
            json.dumps({**counts, **times, "status_dict": messages})
        )
    return folder


def build(source: Path | str, out: Path) -> int:
    return main(["build", "--source", str(source), "--out", str(out), "--tiers", "full:95"])


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_links_that_failed_are_in_the_manifest_whenever_they_were_fetched(tmp_path, capsys):
    for name, seconds in (("a", 1.5), ("b", 60.0)):
        fetched = write_fetched(tmp_path / name, seconds)
        assert build(fetched, tmp_path / f"data_{name}") == 0
    assert contents(tmp_path / "data_a") == contents(tmp_path / "data_b")
    downloads = read_manifest(tmp_path / "data_a").provenance["downloads"]
    failed = {"http_404": 2, "other": 2, "timeout": 1, "unknown_host": 1}
    assert downloads == {"links": 24, "downloaded": 18, "failed": failed}
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "data_a")]) == 0
    shown = capsys.readouterr().out
    assert "18 of 24 (75.0%)" in shown and "http_404              2 (8.33%)" in shown
    assert main(["verify", str(tmp_path / "data_a")]) == 0
    # The same again is finished; what says otherwise of the links is another corpus.
    assert build(tmp_path / "a", tmp_path / "data_a") == 0
    (tmp_path / "a/00001_stats.json").unlink()
    (tmp_path / "a/00001.tar").unlink()
    assert build(tmp_path / "a", tmp_path / "data_a") == 2
    assert "downloads.links" in capsys.readouterr().err


def test_joined_datasets_count_the_links_of_all(tmp_path):
    write_fetched(tmp_path / "a")
    assert build(tmp_path / "a" / "00000.tar", tmp_path / "one") == 0
    tokenizer = ["--tokenizer", str(tmp_path / "one/tokenizer.model"), "--tiers", "full:95"]
    other = ["build", "--source", str(tmp_path / "a/00001.tar"), "--out", str(tmp_path / "two")]
    assert main([*other, *tokenizer]) == 0
    sources = ["--source", str(tmp_path / "one"), "--source", str(tmp_path / "two")]
    assert main(["join", str(tmp_path / "both"), *sources]) == 0
    downloads = read_manifest(tmp_path / "both").provenance["downloads"]
    failed = {"http_404": 2, "other": 2, "timeout": 1, "unknown_host": 1}
    assert downloads == {"links": 24, "downloaded": 18, "failed": failed}


def test_a_download_that_was_not_finished_is_named(tmp_path, capsys):
    fetched = write_fetched(tmp_path / "a")
    (fetched / "00001_stats.json").unlink()
    assert build(fetched, tmp_path / "data") == 2
    error = capsys.readouterr().err.strip()
    assert "00001_stats.json" in error and "data_prep download" in error and "\n" not in error
    assert build(fetched / "00000.tar", tmp_path / "data") == 0
    (fetched / "00001_stats.json").write_text('{"count": 12')
    assert build(fetched, tmp_path / "data_b") == 2
    assert "not img2dataset's statistics" in capsys.readouterr().err
    for path in fetched.glob("*_stats.json"):  # tars that are published without them
        path.unlink()
    assert build(fetched, tmp_path / "data_c") == 0
    assert "downloads" not in read_manifest(tmp_path / "data_c").provenance


TABLES = {
    "cc12m.tsv": 'http://h/1.jpg\t"A" dog, a "cat\nhttp://h/2.jpg\t12\n',
    "cc3m.tsv": '"A" dog, a "cat\thttp://h/1.jpg\n12\thttp://h/2.jpg\n',
    "named.csv": 'image_url,caption,score\nhttp://h/1.jpg,"""A"" dog, a ""cat",0.5\nhttp://h/2.jpg,12,1\n',
    "headless.csv": 'http://h/1.jpg,"""A"" dog, a ""cat"\nhttp://h/2.jpg,12\n',
    "coyo.jsonl": '{"url": "http://h/1.jpg", "text": "\\"A\\" dog, a \\"cat"}\n'
    '{"url": "http://h/2.jpg", "text": "12"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_kind_give_links_and_captions(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name])
    schema, rows = stage_tables(str(tmp_path / name), None, tmp_path / "staged")
    chosen = choose_columns(name, schema, None, None, None)
    (staged,) = (tmp_path / "staged").iterdir()
    found = pq.read_table(staged, columns=[chosen.url, chosen.caption]).to_pydict()
    assert rows == 2 and found[chosen.url] == ["http://h/1.jpg", "http://h/2.jpg"]
    assert found[chosen.caption] == ['"A" dog, a "cat', "12"]
    assert chosen.kept == (["score"] if name == "named.csv" else [])


LATE = {
    "a decimal": ("7", "0.5", pa.float64(), 0.5),
    "a word": ("7", "n/a", pa.string(), "n/a"),
    "beyond 64 bits": ("7", "12345678901234567890", pa.string(), "12345678901234567890"),
    "after nothing": ("", "x", pa.string(), "x"),
    "a caption": ("7", "3.50", None, "3.50"),
}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("name", LATE)
def test_a_column_may_change_its_type_late(name, kind, tmp_path):
    """40,000 rows are more than any block that a reader looks at."""
    early, late, wanted, value = LATE[name]
    column = "score" if wanted else "Caption"
    cells = [early] * 40_000 + [late]
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        shown = ["null" if not c else c if c[-1].isdigit() else f'"{c}"' for c in cells]
        lines = [f'{{"url": "http://h/{i}", "{column}": {c}}}' for i, c in enumerate(shown)]
    else:
        comma = "\t" if kind == "tsv" else ","
        rows = [f"http://h/{i}{comma}{c}" for i, c in enumerate(cells)]
        lines = [f"url{comma}{column}", *rows]
    path.write_text("\n".join(lines) + "\n")
    schema, rows = stage_tables(str(path), None, tmp_path / "staged")
    assert rows == 40_001 and schema.field(column).type == (wanted or pa.string())
    (staged,) = (tmp_path / "staged").iterdir()
    found = pq.read_table(staged)
    assert found[column][-1].as_py() == value and str(found[column][0].as_py() or "") in (
        early,
        early + ".0",
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_killed_between_two_files_the_same_command_writes_the_other(kind, tmp_path):
    """Columns and types are those of all files, whichever are written already."""
    (tmp_path / "t").mkdir()
    if kind == "jsonl":
        texts = ('{"url": "http://h/0", "text": "a", "n": 1.5, "extra": "x"}\n',)
        texts += ('{"url": "http://h/1", "text": "b", "n": 2}\n',)
    else:
        texts = ("url,text,n\nhttp://h/0,a,x\n", "url,text,n\nhttp://h/1,b,2\n")
    for i, text in enumerate(texts):
        (tmp_path / f"t/{i}.{kind}").write_text(text)
    whole = stage_tables(str(tmp_path / "t"), None, tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    for gone in wanted:
        shutil.copytree(tmp_path / "whole", tmp_path / "cut", dirs_exist_ok=True)
        (tmp_path / "cut" / gone).unlink()
        assert stage_tables(str(tmp_path / "t"), None, tmp_path / "cut") == whole
        assert contents(tmp_path / "cut") == wanted


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("odd", [["a", "b"], {"en": "a"}, [], [{"raw": "a"}]])
def test_a_link_has_one_text(kind, odd, tmp_path):
    """A list or an object is none, and no text of JSON stands for it; others may be lists."""
    values = ["a", odd] if kind == "jsonl" else [odd, odd]
    rows = [
        {"url": f"http://h/{i}", "caption": value, "alt_text": 7, "tags": ["x", "y"]}
        for i, value in enumerate(values)
    ]
    if kind == "jsonl":
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    schema, _ = stage_tables(str(tmp_path / f"t.{kind}"), None, tmp_path / "staged")
    with pytest.raises(ValueError, match=r"--caption-column=caption: t has lists or objects"):
        choose_columns("t", schema, None, None, None)
    with pytest.raises(ValueError, match=r"--url-column=tags: t has lists or objects"):
        choose_columns("t", schema, "tags", "alt_text", None)
    assert choose_columns("t", schema, None, "alt_text", None).kept == ["tags"]


REFUSED = {
    "three cells": ("a.tsv", "http://h/1.jpg\ta dog\t0.5\n", [], "--columns"),
    "two cells for three names": (
        "a.tsv",
        "http://h/1.jpg\ta\n",
        ["--columns", "a,b,c"],
        "2 cells",
    ),
    "no such column": (
        "a.csv",
        "url,text\nhttp://h/1,a\n",
        ["--url-column", "link"],
        "url: string",
    ),
    "two captions": ("a.csv", "url,text,alt\nhttp://h/1,a,b\n", [], "--caption-column"),
    "no table": ("a.csv.gz", "", [], "table="),
    "of Windows": ("a.csv", "sep=;\nurl;text\nhttp://h/1;a\n", [], "sep="),
    "two names alike": ("a.csv", "url,text,text\nhttp://h/1,a,b\n", [], "rename"),
    "another kind": ("a.xml", "<a/>", [], ".parquet"),
    "no such sha256": ("a.csv", "url,text\nhttp://h/1,a\n", ["--sha256-column", "x"], "--sha256"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_not_understood_ends_in_one_line(name, tmp_path, capsys):
    """Before img2dataset is started: a program that is only said to have it stands in its place."""
    file, content, options, part = REFUSED[name]
    (tmp_path / file).write_text(content)
    having = shutil.which("true")
    request = ["download", str(tmp_path / file), str(tmp_path / "out"), "--python", str(having)]
    assert main([*request, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert part in error and error.startswith("error: ") and "\n" not in error, error


def test_without_img2dataset_the_requirements_are_named(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("url,text\nhttp://h/1,a\n")
    none = shutil.which("false")
    request = ["download", str(tmp_path / "a.csv"), str(tmp_path / "out"), "--python", str(none)]
    assert main(request) == 2
    error = capsys.readouterr().err.strip()
    assert "requirements-download.txt" in error and "--python" in error and "\n" not in error
    assert not (tmp_path / "out").exists()
    # What it says when it cannot run is in the error, and in a log.
    request[-1] = str(shutil.which("true"))
    assert main(request) == 2
    assert "img2dataset ended after 0 of 1 links" in capsys.readouterr().err


def test_a_table_of_links_as_a_source_names_the_download(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text(TABLES["cc12m.tsv"])
    assert build(tmp_path / "a.tsv", tmp_path / "data") == 2
    assert "python -m data_prep download" in capsys.readouterr().err
