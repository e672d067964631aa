"""Parquet files of one source are of one kind: types are those of all files, or one is named."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import encoded, picture
from test_caption_values import built, refusal

from data_prep.download.link_tables import stage_tables
from data_prep.sources import Corpus, SourceOptions
from pretrain.dataset.manifest import read_manifest

LABEL = b'{"info": {"features": {"c": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}'
REFUSED = {
    "an object late": (pa.array(["a", "b"]), pa.array([{"en": "y"}, {"en": "z"}])),
    "an object early": (pa.array([{"en": "y"}, {"en": "z"}]), pa.array(["a", "b"])),
    "a list late": (pa.array(["a", "b"]), pa.array([["z", "zz"], ["y"]])),
    "lists of objects late": (pa.array([["a"], ["b"]]), pa.array([[{"raw": "z"}], []])),
    "numbers early": (pa.array([1, 2]), pa.array(["a", "b"])),
    "truths late": (pa.array([1, 2]), pa.array([True, False])),
    "times late": (pa.array(["a", "b"]), pa.array([1, 2], pa.timestamp("s"))),
    "bytes late": (pa.array(["a", "b"]), pa.array([b"a", b"b"])),
}
TAKEN: dict[str, tuple[pa.Array, pa.Array, list[list[str]]]] = {
    "lists late": (pa.nulls(2), pa.array([["z", "zz"], ["y"]]), [["z", "zz"], ["y"]]),
    "nothing late": (pa.array([["z", "zz"], ["y"]]), pa.nulls(2), [["z", "zz"], ["y"]]),
    "empty lists early": (
        pa.array([[], []], pa.list_(pa.null())),
        pa.array([["z", "zz"], ["y"]]),
        [["z", "zz"], ["y"]],
    ),
    "numbers of two widths": (
        pa.array([12345678901234567, 2], pa.int64()),
        pa.array([0.1, 2.5], pa.float32()),
        [["12345678901234567"], ["2"], ["0.1"], ["2.5"]],
    ),
    "texts of two types": (
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["c", "d"], pa.large_string()),
        [["a"], ["b"], ["c"], ["d"]],
    ),
}


def write(folder: Path, *columns: pa.Array, metadata: tuple[bytes, ...] = (b"", b"")) -> Path:
    """A file of two pictures for each column of captions."""
    folder.mkdir()
    for i, (column, told) in enumerate(zip(columns, metadata, strict=True)):
        pictures = [encoded(picture(2 * i + j)) for j in range(2)]
        table = pa.table({"image": pictures, "c": column})
        table = table.replace_schema_metadata({b"huggingface": told} if told else None)
        pq.write_table(table, folder / f"{i}.parquet")
    return folder


@pytest.mark.parametrize("case", [*REFUSED, "a class in one file alone"])
def test_a_file_of_another_type_is_named_with_its_column(tmp_path, case, capsys):
    told = (b"", b"") if case in REFUSED else (LABEL, b"")
    columns = REFUSED.get(case) or (pa.array([0, 1]), pa.array([0, 1]))
    source = write(tmp_path / "in", *columns, metadata=told)
    error = refusal(source, tmp_path / "out", capsys, "--caption", "x={c}")
    assert "column 'c'" in error and "1.parquet" in error and "0.parquet" in error, error
    with pytest.raises(ValueError, match=r"column 'c' is .* in .*1\.parquet"):
        stage_tables(str(source), None, tmp_path / "staged")


@pytest.mark.parametrize("case", TAKEN)
def test_values_of_one_kind_are_read_whichever_file_comes_first(tmp_path, case):
    *columns, wanted = TAKEN[case]
    source = write(tmp_path / "in", *columns)
    assert built(source, tmp_path / "out", "--caption", "x={c}") == wanted


def test_where_reads_a_column_that_is_empty_in_one_file(tmp_path):
    source = write(tmp_path / "in", pa.nulls(2), pa.array(["a dog", "a cat"]))
    corpus = Corpus(SourceOptions(source=str(source), where="c LIKE '%cat%'"))
    found = [record.columns for record in corpus.records(["c"], with_images=True)]
    assert found == [{"c": "a cat"}]


@pytest.mark.parametrize("told", [b"", b"x" * 200_000])
def test_the_digest_of_a_footer_is_that_of_its_bytes(tmp_path, told):
    """Not of what the installed pyarrow would write; long ones too."""
    source = write(tmp_path / "in", pa.array(["a", "b"]), metadata=(told,))
    built(source, tmp_path / "out", "--caption", "x={c}")
    (file,) = read_manifest(tmp_path / "out").provenance["files"]
    content = (source / "0.parquet").read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    assert file["footer_sha256"] == hashlib.sha256(content[-8 - length :]).hexdigest()
