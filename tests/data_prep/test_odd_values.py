"""Values that are awkward to hold: large whole numbers beside decimals, late times, bad text."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_caption_values import PICTURES, built, corpus, parquet

from data_prep.__main__ import main
from data_prep.download.link_tables import stage_tables
from data_prep.sources.parquet import _head_of, _rows_at_once
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset

IDS: list[Any] = [12345678901234567, 7.5, 12345678901234569, None]


def metas(folder: Path) -> list[Any]:
    data = Dataset(folder, "full")
    return [data.read_json(row)["meta"] for row in range(len(data))]


@pytest.mark.parametrize("kind", ["jsonl", "tar", "folder", "csv"])
def test_one_decimal_leaves_whole_numbers_whole(tmp_path, kind):
    if kind == "csv":
        source = corpus(tmp_path / "in", "jsonl", [{"caption": "x"}] * 4).with_suffix(".csv")
        lines = [f"{i}.png,a,{'' if one is None else one}\n" for i, one in enumerate(IDS)]
        source.write_text("file_name,caption,id\n" + "".join(lines))
    else:
        source = corpus(tmp_path / "in", kind, [{"caption": "a", "id": one} for one in IDS])
    built(source, tmp_path / "out")
    found = [meta["id"] for meta in metas(tmp_path / "out")]
    assert found == IDS and [type(one) for one in found] == [type(one) for one in IDS]
    table = tmp_path / "later.jsonl"
    rows = [{"k": one, "text": f"text {i}"} for i, one in enumerate(IDS) if one != 7.5]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["recaption", str(tmp_path / "out"), "--source", str(table), "--key", "k"]
    # 7.5 is no key.
    assert main([*asked, "--match", "id", "--workers", "1", "--caption", "t={text}"]) == 2


def test_links_keep_whole_numbers_that_no_float_holds(tmp_path):
    table = tmp_path / "t.jsonl"
    rows = [{"url": f"http://h/{i}", "text": "a", "id": one} for i, one in enumerate(IDS)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema, _ = stage_tables(str(table), None, tmp_path / "staged")
    (staged,) = (tmp_path / "staged").iterdir()
    assert schema.field("id").type == pa.string()
    found = pq.read_table(staged)["id"].to_pylist()
    assert found == ["12345678901234567", "7.5", "12345678901234569", None]


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], [1, 2.0, 3, 4]])
def test_a_key_may_be_a_whole_number_with_a_point(tmp_path, values, capsys):
    """As pandas writes whole numbers beside nulls."""
    source = corpus(tmp_path / "in", "jsonl", [{"caption": "a", "id": i + 1} for i in range(4)])
    built(source, tmp_path / "out")
    table = tmp_path / "later.jsonl"
    rows = [{"k": one, "text": "a"} for one in values]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["recaption", str(tmp_path / "out"), "--source", str(table), "--key", "k"]
    assert main([*asked, "--match", "id", "--workers", "1", "--caption", "t={text}"]) == 0
    assert "4 of 4 samples" in capsys.readouterr().out


def test_short_floats_in_lists_and_structs_show_no_digits_of_their_storage(tmp_path):
    column = pa.array([[0.1, 2.5], None, [1 / 3], [100]], pa.list_(pa.float32()))
    found = built(parquet(tmp_path, column), tmp_path / "out")
    assert found == [["0.1", "2.5"], ["0.33333334"], ["100.0"]]
    column = pa.array([{"x": 0.1}, None, {"x": None}, {"x": 2.5}], pa.struct({"x": pa.float32()}))
    table = pa.table({"image": PICTURES, "caption": ["a"] * 4, "s": column})
    pq.write_table(table, tmp_path / "x.parquet")
    built(tmp_path / "x.parquet", tmp_path / "meta")
    assert [meta["s"] for meta in metas(tmp_path / "meta")] == [
        *({"x": 0.1}, None, {"x": None}, {"x": 2.5}),
    ]


@pytest.mark.parametrize("stored", ["list", "list of dictionaries", "list of views"])
def test_one_bad_text_of_a_list_is_its_rows_alone(tmp_path, stored):
    texts = pa.array([b"caf\xe9", b"a", b"b", b"c", b"d"]).view(pa.string())
    items = {
        "list": texts,
        "list of dictionaries": pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 2, 3, 4], pa.int32()), texts
        ),
        "list of views": pa.array([b"caf\xe9", b"a", b"b", b"c", b"d"], pa.binary_view()).view(
            pa.string_view()
        ),
    }
    column = pa.ListArray.from_arrays(pa.array([0, 2, 3, 4, 5], pa.int32()), items[stored])
    found = built(parquet(tmp_path, column, "captions"), tmp_path / "out")
    assert found == [["b"], ["c"], ["d"]]
    assert read_manifest(tmp_path / "out").rejected["caption_not_utf8"] == 1


TIMES = {
    "of a column": pa.array([10**12, 0, None, -(10**12)], pa.timestamp("s")),
    "with a zone": pa.array([10**12, 0, None, -(10**12)], pa.timestamp("s", "UTC")),
    "in lists": pa.array([[10**12], [0], None, []], pa.list_(pa.timestamp("s"))),
    "in structs": pa.array([{"t": 10**12}] * 4, pa.struct({"t": pa.timestamp("s")})),
    "days": pa.array([2**30, 0, None, -(2**30)], pa.date32()),
    "spans": pa.array([2**60, 0, None, 1], pa.duration("s")),
    "in maps": pa.array([[("a", 10**12)]] * 4, pa.map_(pa.string(), pa.timestamp("s"))),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_time_that_python_does_not_know_ends_no_build(tmp_path, case):
    table = pa.table({"image": PICTURES, "caption": ["a", "b", "c", "d"], "t": TIMES[case]})
    pq.write_table(table, tmp_path / "x.parquet")
    built(tmp_path / "x.parquet", tmp_path / "out")
    found = [meta["t"] for meta in metas(tmp_path / "out")]
    assert found[0] in (None, [None], {"t": None}) and len(found) == 4
    if case == "of a column":
        assert found == [None, "1970-01-01 00:00:00", None, None]


def test_rows_read_at_once_follow_what_a_value_can_take(tmp_path):
    """One long text that all rows share, and as many short ones of their own."""
    where = tmp_path / "x.parquet"
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), ["x" * 10_000_000])
    own = pa.array([f"a caption of a picture, number {row}" * 300 for row in range(300)])
    for column, least, most in ((shared, 1, 20), (own, 40, 256)):
        pq.write_table(pa.table({"a": column}), where, dictionary_pagesize_limit=1 << 30)
        group = pq.ParquetFile(where).metadata.row_group(0)
        assert least <= _rows_at_once(group, ["a"], partial(_head_of, where)) <= most


@pytest.mark.soak
def test_a_small_file_of_gigabytes_of_text_costs_a_bounded_memory(tmp_path):
    """Of 300 rows all but a few have the same ten megabytes, which the file holds once."""
    short = [f"a small picture {n}" for n in range(6)]
    which = pa.array([row if row < 6 else 6 for row in range(300)], pa.int32())
    texts = pa.DictionaryArray.from_arrays(which, pa.array([*short, "x" * 10_000_000]))
    pictures = [PICTURES[row % len(PICTURES)] for row in range(300)]
    file = tmp_path / "small.parquet"
    table = pa.table({"image": pictures, "caption": texts})
    pq.write_table(table, file, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert file.stat().st_size < 1_000_000
    build = subprocess.Popen(
        [sys.executable, "-m", "data_prep", "build", "--source", file, "--out", tmp_path / "out",
         "--tiers", "full:95", "--vocab-size", "300", "--workers", "1"]
    )  # fmt: skip
    _, status, used = os.wait4(build.pid, 0)
    build.returncode = os.waitstatus_to_exitcode(status)
    assert build.returncode == 0
    assert read_manifest(tmp_path / "out").rejected["caption_too_long"] == 294
    gib = used.ru_maxrss / 2**20  # of the largest process that the command waited for
    assert gib < 2, f"{gib:.1f} GiB"


def test_a_condition_that_the_values_cannot_answer_is_one_line(tmp_path, capsys):
    """A structure passes as a number while there are no rows."""
    number = pa.array([{"bytes": 1, "path": 2}] * len(PICTURES))
    file = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": PICTURES, "caption": ["a"] * len(PICTURES), "number": number}), file
    )
    words = ["build", "--source", str(file), "--out", str(tmp_path / "out"), "--vocab-size", "300"]
    assert main([*words, "--workers", "1", "--where", "number < 3"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert "--where cannot be evaluated" in line and "change it" in line
