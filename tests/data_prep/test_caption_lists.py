"""A column of lists gives a picture several captions, and none is lost in silence."""

import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import encoded, picture

from data_prep.__main__ import main as data_prep
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset

LISTS: list[list[str] | None] = [
    ["a dog", "  ", "one dog", "", "the dog"],
    ["a cat"],
    [],
    None,
    ["w", "x", "y", "z", "zz"],
]
WANTED = [
    {"said": "a dog", "said_2": "one dog", "said_3": "the dog"},
    {"said": "a cat"},
    {"said": "w", "said_2": "x", "said_3": "y"},
]


def corpus(folder: Path, kind: str, column: str = "captions") -> Path:
    """Five pictures with their lists of captions, as Parquet or as JSON Lines of paths."""
    pictures = [encoded(picture(i)) for i in range(len(LISTS))]
    if kind == "parquet":
        path = folder / "corpus.parquet"
        pl.DataFrame({"image": pictures, column: LISTS}).write_parquet(path)
        return path
    for i, content in enumerate(pictures):
        (folder / f"{i}.png").write_bytes(content)
    path = folder / "corpus.jsonl"
    lines = [json.dumps({"file_name": f"{i}.png", column: v}) for i, v in enumerate(LISTS)]
    path.write_text("\n".join(lines))
    return path


def build(source: Path, out: Path, *more: str) -> Dataset:
    options = ["--tiers", "full:95", "--vocab-size", "300", "--workers", "1", *more]
    assert data_prep(["build", "--source", str(source), "--out", str(out), *options]) == 0
    return Dataset(out, "full")


def captions(data: Dataset) -> list[dict[str, str]]:
    return [data.read_json(row)["captions"] for row in range(len(data))]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_list_gives_named_captions_without_its_empty_entries(tmp_path, kind, capfd):
    asked = ("--caption", "said={captions}", "--captions-per-list", "3")
    data = build(corpus(tmp_path, kind), tmp_path / "out", *asked)
    assert data.manifest.captions == ["said", "said_2", "said_3"]
    assert captions(data) == WANTED
    assert [(row > 0).sum() for row in data.index["tokens"]] == [3, 1, 3]
    assert data.manifest.rejected["caption_empty"] == 2
    # zz and z: what is beyond is counted, in the manifest and for who looks on.
    assert data.manifest.provenance["captions_left_out"] == 2
    assert "captions left out" in capfd.readouterr().out
    again = ["--source", str(tmp_path / f"corpus.{kind}"), "--out", str(tmp_path / "out"), *asked]
    more = ["--tiers", "full:95", "--vocab-size", "300"]
    assert data_prep(["build", *again, *more]) == 0
    assert "is finished" in capfd.readouterr().err
    again[-1] = "2"
    assert data_prep(["build", *again, *more]) == 2
    assert "captions_per_list" in capfd.readouterr().err


@pytest.mark.parametrize("column", ["captions", "sentences", "raw", "caption"])
def test_a_well_known_column_of_lists_is_found(tmp_path, column, capfd):
    data = build(corpus(tmp_path, "parquet", column), tmp_path / "out")
    assert data.manifest.captions == ["caption", *(f"caption_{n}" for n in range(2, 6))]
    assert captions(data)[0] == {
        name.replace("said", "caption"): text for name, text in WANTED[0].items()
    }
    assert "captions_left_out" not in data.manifest.provenance
    told = capfd.readouterr().err
    assert (f"captions are read from column {column!r}" in told) == (column != "caption")


def test_a_column_of_text_goes_before_one_of_lists(tmp_path):
    source = corpus(tmp_path, "parquet")
    table = pl.read_parquet(source).with_columns(text=pl.lit("a thing"))
    table.write_parquet(source)
    assert build(source, tmp_path / "out").manifest.captions == ["caption"]


def test_lists_are_joined_by_commas_where_asked_for_and_inside_other_text(tmp_path):
    source = corpus(tmp_path, "parquet")
    asked = ("--caption", "all={captions}", "--captions-per-list", "null")
    one = captions(build(source, tmp_path / "one", *asked))
    two = captions(build(source, tmp_path / "two", "--caption", "all=said {captions}"))
    assert one[0] == {"all": "a dog, one dog, the dog"}
    assert two[0] == {"all": "said a dog, one dog, the dog"}
    assert read_manifest(tmp_path / "two").captions == ["all"]


def test_names_that_meet_are_refused(tmp_path, capfd):
    asked = ("--caption", "said={captions}", "--caption", "said_2=x {captions}")
    source = corpus(tmp_path, "parquet")
    assert pq.read_schema(source).names == ["image", "captions"]
    status = data_prep(["build", "--source", str(source), "--out", str(tmp_path / "out"), *asked])
    assert status == 2 and "caption name 'said_2' given twice" in capfd.readouterr().err
    wrong = ("--captions-per-list", "0")
    status = data_prep(["build", "--source", str(source), "--out", str(tmp_path / "out"), *wrong])
    assert status == 2 and "--captions-per-list" in capfd.readouterr().err
