"""Parquet as the field has it: other column names, no pictures inside, damaged files."""

import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture, plain_corpus, write_corpus

from data_prep.__main__ import main
from pretrain.dataset.manifest import read_manifest

PICTURES = [encoded(picture(i)) for i in range(6)]
CAPTIONS = [caption(i) for i in range(6)]


def build(source: Path | str, out: Path, *more: str) -> int:
    return main(["build", "--source", str(source), "--out", str(out), *more])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error, error
    return error


@pytest.mark.parametrize(
    ("image", "text"), [("jpg", "caption"), ("jpg", "text"), ("image_bytes", "TEXT")]
)
def test_the_only_well_known_names_are_taken_and_said(tmp_path, capsys, image, text):
    """As img2dataset writes Parquet, with columns that are neither."""
    table = {
        "key": [str(i) for i in range(6)],
        "url": ["http://host/x.jpg"] * 6,
        text: CAPTIONS,
        image: PICTURES,
        "exif": ["{}"] * 6,
    }
    assert build(write_corpus(tmp_path / "c.parquet", table), tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert f"note: pictures are read from column '{image}'" in said
    assert (f"note: captions are read from column '{text}'" in said) == (text != "caption")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.samples == 6 and manifest.captions == ["caption"]
    options = manifest.provenance["options"]
    assert options["source"]["image_column"] == image
    assert options["captions"]["caption"] == [f"caption={{{text}}}"]


def test_the_default_names_come_first(tmp_path, capsys):
    table = {"jpg": [b"x"] * 6, "image": PICTURES, "text": ["x"] * 6, "caption": CAPTIONS}
    assert build(write_corpus(tmp_path / "c.parquet", table), tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").samples == 6
    assert "note:" not in capsys.readouterr().err


REFUSED = {
    "two picture columns": (
        {"jpg": PICTURES, "png": PICTURES, "caption": CAPTIONS},
        ["['jpg', 'png']", "--image-column"],
    ),
    "an unknown name": (
        {"embedding": PICTURES, "caption": CAPTIONS},
        ["['embedding']", "--image-column"],
    ),
    "two caption columns": (
        {"jpg": PICTURES, "text": CAPTIONS, "alt_text": CAPTIONS},
        ["'text'", "'alt_text'", "--caption NAME=TEMPLATE"],
    ),
    "links alone": (
        {"url": ["http://host/x.jpg"] * 6, "TEXT": CAPTIONS},
        ["table of links", "'url'", "python -m data_prep download", "--source"],
    ),
    "file names in the picture column": (
        {"image": ["a.jpg"] * 6, "caption": CAPTIONS},
        ["no column", "image: string", "NAME.txt"],
    ),
    "paths alone": (
        {"image": [None] + [{"bytes": None, "path": "pics/a.jpg"}] * 5, "caption": CAPTIONS},
        ["holds only paths", "'pics/a.jpg'", "save_to_disk", "--image-root"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_chosen_is_refused(name, tmp_path, capsys):
    columns, parts = REFUSED[name]
    if name == "paths alone":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {**columns, "image": pa.array(columns["image"], kind)}
    assert build(write_corpus(tmp_path / "c.parquet", columns), tmp_path / "out") == 2
    error = error_of(capsys)
    for part in parts:
        assert part in error
    assert not (tmp_path / "out").exists()


def test_the_remedy_for_paths_alone_works(tmp_path, capsys):
    """`datasets` leaves the files where they are in Parquet, and puts them into what it saves."""
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    rows = {"image": [str(tmp_path / "a.png")], "caption": ["a picture"]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(tmp_path / "c.parquet")
    capsys.readouterr()
    assert build(tmp_path / "c.parquet", tmp_path / "out") == 2
    assert str(tmp_path / "a.png") in error_of(capsys)
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert build(tmp_path / "saved", tmp_path / "out") == 0


@pytest.mark.parametrize("shape", ["struct", "text"])
def test_paths_are_followed_below_a_named_root_only(tmp_path, shape):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.png").write_bytes(PICTURES[0])
    (tmp_path / "secret.png").write_bytes(PICTURES[1])
    (tmp_path / "pics/link.png").symlink_to(tmp_path / "secret.png")
    inside = str(tmp_path / "pics/a.png")
    paths = ["a.png", inside, "../secret.png", str(tmp_path / "secret.png"), "link.png", "no.png"]
    images = pa.array(paths)
    if shape == "struct":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    source = write_corpus(tmp_path / "c.parquet", {"image": images, "caption": CAPTIONS})
    root = ["--image-root", str(tmp_path / "pics")]
    assert build(source, tmp_path / "out", *root) == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.samples == 2
    assert manifest.rejected["image_outside_root"] == 3
    assert manifest.rejected["image_missing"] == 1
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


def test_a_column_with_some_bytes_is_read(tmp_path):
    """Rows without bytes are counted, however late the first bytes come."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    bare = [{"bytes": None, "path": "a.jpg"}] * 300
    images = pa.array([*bare, {"bytes": PICTURES[0], "path": None}], kind)
    captions = [f"row {i}" for i in range(301)]
    source = write_corpus(tmp_path / "c.parquet", {"image": images, "caption": captions})
    assert build(source, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.samples, manifest.rejected["image_missing"]) == (1, 300)


@pytest.mark.parametrize("column", ["image", "caption"])
def test_a_damaged_page_stops_the_build_and_names_the_file(tmp_path, capsys, column):
    plain_corpus(tmp_path / "a.parquet", 10)
    bad = plain_corpus(tmp_path / "b.parquet", 40)
    group = pq.read_metadata(bad).row_group(2)
    chunk = next(group.column(i) for i in range(9) if group.column(i).path_in_schema == column)
    content = bytearray(bad.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    bad.write_bytes(content)
    assert build(tmp_path, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(rf"error: source: {bad} cannot be read to its end \(.+\); get", error), error
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_flipped_bit_in_a_page_with_a_checksum_is_found(tmp_path, capsys):
    source = tmp_path / "c.parquet"
    table = pa.table({"image": PICTURES, "caption": CAPTIONS})
    pq.write_table(table, source, compression=None, write_page_checksum=True)
    content = bytearray(source.read_bytes())
    content[content.index(PICTURES[3]) + 200] ^= 1
    source.write_bytes(content)
    assert build(source, tmp_path / "out") == 2
    assert "c.parquet cannot be read to its end" in capsys.readouterr().err
