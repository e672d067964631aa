"""Captions are what the source says: nulls, lists, numbers, booleans, classes; no object is one."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import encoded, picture
from test_webdataset import add

from data_prep.__main__ import main
from data_prep.sources import Corpus, SourceOptions
from pretrain.dataset.captions import open_recaptions
from pretrain.dataset.reader import Dataset

ROWS = 4
PICTURES = [encoded(picture(i)) for i in range(ROWS)]
KINDS = ("jsonl", "tar", "folder")


def corpus(folder: Path, kind: str, records: list[dict[str, Any]] | list[str]) -> Path:
    """Pictures with records that no schema tells of; a record may be the text of its JSON."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in records]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "tar":
        with tarfile.open(folder / "x.tar", "w") as tar:
            for i, text in enumerate(texts):
                add(tar, f"{i}.png", PICTURES[i])
                add(tar, f"{i}.json", text.encode())
        return folder / "x.tar"
    for i, text in enumerate(texts):
        (folder / f"{i}.png").write_bytes(PICTURES[i])
        if kind == "folder":
            (folder / f"{i}.json").write_text(text)
    if kind == "folder":
        return folder
    lines = [f'{{"file_name": "{i}.png", {text[1:]}\n' for i, text in enumerate(texts)]
    (folder / "x.jsonl").write_text("".join(lines))
    return folder / "x.jsonl"


def parquet(folder: Path, column: pa.Array | pa.ChunkedArray, name: str = "caption") -> Path:
    path = folder / "x.parquet"
    pq.write_table(pa.table({"image": PICTURES, name: column}), path)
    return path


def built(source: Path, out: Path, *more: str) -> list[list[str]]:
    """The captions of each sample, in order."""
    options = ["--tiers", "full:95", "--vocab-size", "300", "--workers", "1", *more]
    assert main(["build", "--source", str(source), "--out", str(out), *options]) == 0
    data = Dataset(out, "full")
    return [list(data.read_json(row)["captions"].values()) for row in range(len(data))]


def refusal(source: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["build", "--source", str(source), "--out", str(out), *more]) == 2
    said = capsys.readouterr().err.strip().split("\n")
    *notes, error = said
    assert error.startswith("error: ") and all(n.startswith("note: ") for n in notes), said
    return error


MIXED = {
    "a null in a list": [["a", "b"], ["c", None, "d"], ["e"], ["f"]],
    "a text beside lists": [["a", "b"], "c, d", ["e"], ["f"]],
    "a number beside lists": [["a", "b"], 7, ["e"], ["f"]],
    "a number in a list": [["a", 7], ["c"], ["e"], ["f"]],
    "no list at all in one": [["a", "b"], ["c"], [], None],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["captions", "caption"])
@pytest.mark.parametrize("case", MIXED)
def test_one_odd_row_changes_no_other(tmp_path, case, name, kind):
    values = MIXED[case]
    wanted = [
        [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
        for value in values
    ]
    source = corpus(tmp_path / "in", kind, [{name: value} for value in values])
    found = built(source, tmp_path / "out")
    assert found == [texts for texts in wanted if texts]


NUMBERS = ["3.50", "7", "12345678901234567.25", "1e5"]


@pytest.mark.parametrize("kind", [*KINDS, "csv"])
def test_numbers_keep_their_digits_and_compare_as_numbers(tmp_path, kind):
    if kind == "csv":
        source = corpus(tmp_path / "in", "jsonl", [{"caption": "x"}] * ROWS).with_suffix(".csv")
        cells = [*NUMBERS[:3], "0.10"]
        lines = [f"{i}.png,{cell}\n" for i, cell in enumerate(cells)]
        source.write_text("file_name,n\n" + "".join(lines))
    else:
        cells = NUMBERS
        source = corpus(tmp_path / "in", kind, [f'{{"n": {cell}}}' for cell in cells])
    captions = ("--caption", "caption=no. {n}")
    assert built(source, tmp_path / "out", *captions) == [[f"no. {cell}"] for cell in cells]
    chosen = Corpus(SourceOptions(source=str(source), where="n > 3.4 AND n < 8"))
    assert [record.columns["n"] for record in chosen.records(["n"], with_images=False)] == [3.5, 7]
    meta = Dataset(tmp_path / "out", "full").read_json(0)["meta"]["n"]
    assert meta == 3.5 and isinstance(meta, float)


def test_short_floats_of_parquet_show_no_digits_of_their_storage(tmp_path):
    column = pa.array([0.1, 2.5, 1 / 3, 100], pa.float32())
    found = built(parquet(tmp_path, column), tmp_path / "out")
    assert found == [["0.1"], ["2.5"], ["0.33333334"], ["100.0"]]


@pytest.mark.parametrize("kind", [*KINDS, "parquet"])
def test_booleans_are_true_and_false_in_every_kind(tmp_path, kind):
    values = [True, False, True, False]
    if kind == "parquet":
        source = parquet(tmp_path, pa.array(values), "b")
    else:
        source = corpus(tmp_path / "in", kind, [{"b": value} for value in values])
    found = built(source, tmp_path / "out", "--caption", "caption=it is {b}")
    assert found == [["it is true"], ["it is false"]] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [{"en": "a"}, {}, [{"raw": "a"}], [["a"], ["b"]]])
def test_an_object_is_no_caption(tmp_path, kind, odd, capsys):
    records = [{"caption": "a", "text": "b"}, {"caption": odd, "text": "c"}] * 2
    source = corpus(tmp_path / "in", kind, records)
    error = refusal(source, tmp_path / "out", capsys)
    assert "['caption'] hold objects" in error and "'text'" in error, error
    error = refusal(source, tmp_path / "out", capsys, "--caption", "x=so {caption}")
    assert "--caption NAME=TEMPLATE" in error
    found = built(source, tmp_path / "out", "--caption", "caption={text}")
    assert found == [["b"], ["c"]] * 2
    assert Dataset(tmp_path / "out", "full").read_json(1)["meta"]["caption"] == json.dumps(odd)


STRUCTS = {
    "struct": pa.array([{"en": "a"}] * ROWS),
    "list of structs": pa.array([[{"raw": "a"}]] * ROWS),
    "map": pa.array([[("en", "a")]] * ROWS, pa.map_(pa.string(), pa.string())),
    "list of lists": pa.array([[["a"]]] * ROWS),
}


@pytest.mark.parametrize("name", STRUCTS)
def test_nor_is_one_of_parquet(tmp_path, name, capsys):
    source = parquet(tmp_path, STRUCTS[name])
    assert "['caption'] hold objects" in refusal(source, tmp_path / "out", capsys)


def test_a_text_beside_the_picture_stands_for_an_object_in_its_json(tmp_path):
    source = corpus(tmp_path / "in", "folder", [{"caption": {"en": "x"}}] * ROWS)
    for i in range(ROWS):
        (source / f"{i}.txt").write_text(f"text {i}")
    assert built(source, tmp_path / "out") == [[f"text {i}"] for i in range(ROWS)]


def encodings() -> dict[str, pa.Array]:
    """The texts a, b, null, a in types that stand for text."""
    texts = pa.array(["a", "b", None, "a"])
    large = pa.array(["a", "b", None, "a"], pa.large_string())
    return {
        "dictionary": texts.dictionary_encode(),
        "dictionary of large": large.dictionary_encode(),
        "view": texts.cast(pa.string_view()),
        "large": large,
        "list of dictionaries": pa.ListArray.from_arrays(
            pa.array([0, 1, 2, 3, 4]), texts.dictionary_encode()
        ),
    }


@pytest.mark.parametrize("name", encodings())
def test_texts_are_known_by_their_names_however_they_are_stored(tmp_path, name):
    column = "captions" if name.startswith("list") else "text"
    source = parquet(tmp_path, encodings()[name], column)
    assert built(source, tmp_path / "out") == [["a"], ["b"], ["a"]]
    if column == "text":
        chosen = Corpus(SourceOptions(source=str(source), where="text = 'a'"))
        assert len(list(chosen.records(["text"], with_images=True))) == 2


def test_pictures_of_a_view_type_are_read(tmp_path):
    table = pa.table({"image": pa.array(PICTURES, pa.binary_view()), "caption": ["a"] * ROWS})
    pq.write_table(table, tmp_path / "x.parquet")
    assert len(built(tmp_path / "x.parquet", tmp_path / "out")) == ROWS


@pytest.mark.parametrize("kind", ["saved", "parquet", "two files"])
def test_a_class_is_its_name(tmp_path, kind):
    def made(names: list[str]) -> datasets.Dataset:
        label = datasets.ClassLabel(names=names)
        features = datasets.Features(
            image=datasets.Image(), label=label, labels=datasets.Sequence(label)
        )
        pictures = [{"bytes": one, "path": None} for one in PICTURES]
        rows = {"image": pictures, "label": [0, 1, -1, 1], "labels": [[0, 1], [], [1], [0]]}
        return datasets.Dataset.from_dict(rows, features=features)

    source = tmp_path / "in"
    source.mkdir()
    if kind == "saved":
        made(["cat", "dog"]).save_to_disk(str(source))
    else:
        made(["cat", "dog"]).to_parquet(source / "0.parquet")
    if kind == "two files":
        pictures = [encoded(picture(10 + i)) for i in range(ROWS)]
        table = made(["cow", "fox"]).to_parquet(io.BytesIO()) and made(["cow", "fox"]).data.table
        images = pa.array([{"bytes": one, "path": None} for one in pictures], table["image"].type)
        pq.write_table(table.set_column(0, table.schema.field(0), images), source / "1.parquet")
    ones = ("--caption", "one=a {label}", "--caption", "all={labels}")
    found = built(source, tmp_path / "out", *ones)
    wanted = [["a cat", "cat", "dog"], ["a dog"], ["dog"], ["a dog", "cat"]]
    if kind == "two files":
        wanted += [["a cow", "cow", "fox"], ["a fox"], ["fox"], ["a fox", "cow"]]
    assert found == wanted
    chosen = Corpus(SourceOptions(source=str(source), where="label = 'dog'"))
    assert sum(1 for _ in chosen.records(["label"], with_images=False)) == 2


def test_a_name_that_two_columns_have_is_refused(tmp_path, capsys):
    table = pa.table(
        [PICTURES, ["a"] * ROWS, ["x"] * ROWS, ["y"] * ROWS], ["image", "caption", "n", "n"]
    )
    pq.write_table(table, tmp_path / "x.parquet")
    error = refusal(tmp_path / "x.parquet", tmp_path / "out", capsys)
    assert "x.parquet" in error and "['n']" in error and "rename" in error


def test_a_second_table_says_the_same(tmp_path, capsys):
    """Recaption's rows: an odd one beside others, digits, booleans, and no object."""
    source = corpus(tmp_path / "in", "jsonl", [{"caption": f"row {i}", "n": i} for i in range(4)])
    built(source, tmp_path / "out")
    table = tmp_path / "later.jsonl"
    lists = ['["a", null, 2.50]', '"b"', "1.10", "null"]
    rows = [
        f'{{"k": {i}, "said": {value}, "n": {1 + i}.50, "b": true, "o": {{"n": {i}}}}}\n'
        for i, value in enumerate(lists)
    ]
    table.write_text("".join(rows))
    asked = ["recaption", str(tmp_path / "out"), "--source", str(table), "--key", "k"]
    asked += ["--match", "n", "--workers", "1", "--caption"]
    assert main([*asked, "x={o}"]) == 2
    assert "['o'] hold objects" in capsys.readouterr().err
    assert main([*asked, "said={said}", "--caption", "no=no. {n}, {b}"]) == 0
    data = Dataset(tmp_path / "out", "full")
    wanted = {
        "said": ["a", "b", "1.10", None],
        "said_2": ["2.50", None, None, None],
        "no": [f"no. {1 + i}.50, true" for i in range(4)],
    }
    for one in open_recaptions(tmp_path / "out", data.manifest, wanted):
        for row, text in enumerate(wanted[one.name]):
            ids, _ = one.read(row)
            assert ids.tolist() == (data.tokenizer().encode(text) if text else []), (one.name, row)


def test_where_no_row_gives_a_caption_the_line_says_why_and_what_there_is(tmp_path, capsys):
    source = corpus(tmp_path / "in", "jsonl", [{"text": "x", "more": "y"}] * ROWS)
    table = source.with_suffix(".csv")
    lines = "".join(f"{i}.png,caf\xe9,\n" for i in range(ROWS))
    table.write_bytes(("file_name,text,note\n" + lines).encode("latin-1"))
    error = refusal(table, tmp_path / "out", capsys)
    assert "'caption_not_utf8': 4" in error and "UTF-8" in error and "'note'" in error
    error = refusal(table, tmp_path / "out", capsys, "--caption", "a={note}")
    assert "'caption_empty': 4" in error and "'text'" in error and "a={note}" in error
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(ROWS):
            add(tar, f"{i}.png", PICTURES[i])
            add(tar, f"{i}.outputs.txt", b"a text")
    error = refusal(tmp_path / "x.tar", tmp_path / "out", capsys)
    assert "'outputs_txt'" in error and "--caption" in error
