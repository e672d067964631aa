"""A folder of pictures with their texts is a corpus; what it holds besides is said, not read."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from data_prep_corpus import caption, encoded, picture, write_corpus

from data_prep.__main__ import main
from data_prep.sources import Corpus, Record, SourceOptions
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.pictures import SUFFIXES

KINDS = {
    "jpg": "JPEG",
    "JPEG": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "TIFF": "TIFF",
    "avif": "AVIF",
    "ppm": "PPM",
}


def fill(folder: Path) -> Path:
    """One picture of every kind, in three folders, each with its text."""
    for i, (suffix, kind) in enumerate(KINDS.items()):
        path = folder / ["", "cats", "dogs/big"][i % 3] / f"n.{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i), kind))
        path.with_suffix(".txt").write_text(caption(i), encoding="utf-8")
    return folder


def records(folder: Path, where: str | None = None) -> list[Record]:
    corpus = Corpus(SourceOptions(source=str(folder), where=where))
    return list(corpus.records(corpus.columns, with_images=True))


def column(folder: Path, name: str, where: str | None = None) -> list[Any]:
    return [record.columns[name] for record in records(folder, where)]


def build(source: Path, out: Path, *more: str) -> int:
    return main(["build", "--source", str(source), "--out", str(out), *more])


def members(out: Path, suffix: str) -> list[bytes]:
    with tarfile.open(out / "160/00000.tar") as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith(suffix)]  # type: ignore[union-attr]


def test_every_kind_of_picture_with_its_text_becomes_a_sample(tmp_path, capsys):
    assert {f".{suffix.lower()}" for suffix in KINDS} == set(SUFFIXES)
    source = fill(tmp_path / "mine")
    assert build(source, tmp_path / "out") == 0
    assert "note:" not in capsys.readouterr().err
    details = [json.loads(data) for data in members(tmp_path / "out", ".json")]
    paths = [entry["meta"]["path"] for entry in details]
    expected = sorted(
        str(path.relative_to(source)) for path in source.rglob("*.*") if path.suffix != ".txt"
    )
    assert paths == sorted(expected, key=str.encode) and len(paths) == len(KINDS)
    for entry in details:
        number = int(entry["meta"]["path"].split(".")[1])
        assert entry["captions"] == {"caption": caption(number)}
        assert entry["meta"]["folder"] == ["", "cats", "big"][number % 3]
    (files,) = read_manifest(tmp_path / "out").provenance["files"]
    assert len(files.pop("listing_sha256")) == 64
    assert files == {"name": "mine", "pictures": len(KINDS), "texts": len(KINDS)}


def test_a_folder_gives_the_bytes_of_the_same_corpus_in_parquet(tmp_path):
    found = records(fill(tmp_path / "mine"))
    table = {
        "image": [record.image for record in found],
        **{name: [r.columns[name] for r in found] for name in ("path", "folder", "caption")},
    }
    assert build(write_corpus(tmp_path / "mine.parquet", table), tmp_path / "parquet") == 0
    assert build(tmp_path / "mine", tmp_path / "folder") == 0
    for name in ("160/00000.tar", "320/00000.tar", "320/index.npy", "tokenizer.model"):
        assert (tmp_path / "folder" / name).read_bytes() == (
            tmp_path / "parquet" / name
        ).read_bytes(), name


def test_where_and_templates_use_path_folder_and_caption(tmp_path):
    source = fill(tmp_path / "mine")
    assert column(source, "path", "folder = 'cats'") == [
        *("cats/n.1.JPEG", "cats/n.4.gif", "cats/n.7.TIFF")
    ]
    assert column(source, "path", "path LIKE 'dogs/%' AND caption LIKE '%number 8'") == [
        "dogs/big/n.8.avif"
    ]
    where = ["--where", "folder != ''", "--caption", "class=a photo of {folder}"]
    assert build(source, tmp_path / "out", *where) == 0
    assert set(members(tmp_path / "out", ".txt")) == {b"a photo of cats", b"a photo of big"}


def test_texts_are_judged(tmp_path):
    (tmp_path / "mine").mkdir()
    texts = {
        "bom": b"\xef\xbb\xbfwith a mark",
        "latin": b"caf\xe9",
        "wide": "two bytes each".encode("utf-16"),
        "blank": b" \n",
        "giant": "é".encode() * (1 << 20),
    }
    for i, (name, text) in enumerate(texts.items()):
        (tmp_path / "mine" / f"{name}.png").write_bytes(encoded(picture(i)))
        (tmp_path / "mine" / f"{name}.txt").write_bytes(text)
    assert build(tmp_path / "mine", tmp_path / "out") == 0
    assert members(tmp_path / "out", ".txt") == [b"with a mark"]
    rejected = read_manifest(tmp_path / "out").rejected
    assert {reason: count for reason, count in rejected.items() if count} == {
        "caption_not_utf8": 2,
        "caption_empty": 1,
        "caption_too_long": 1,
    }


def test_what_does_not_fit_is_counted_and_said(tmp_path, capsys):
    source = fill(tmp_path / "mine")
    (source / "bare.jpg").write_bytes(encoded(picture(50), "JPEG"))
    (source / "bare2.jpg").write_bytes(encoded(picture(51), "JPEG"))
    for name in ("lost.txt", "cats/lost.txt", "notes.md", "list.json", ".hidden.jpg"):
        (source / name).write_text("something")
    assert build(source, tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").rejected["caption_empty"] == 2
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(notes) == 3
    assert "without a .txt or .json beside them: 2 of 12, e.g. bare.jpg" in notes[0]
    assert "without a picture beside them: 2, e.g. cats/lost.txt" in notes[1]
    assert "1 .md" in notes[2] and "1 .json" in notes[2]


def test_pictures_of_one_name_share_a_text_and_endings_may_be_upper_case(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(0), "JPEG"))
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "a.txt").write_text("shared")
    (tmp_path / "B.PNG").write_bytes(encoded(picture(2)))
    (tmp_path / "B.TXT").write_text("loud")
    assert column(tmp_path, "path") == ["B.PNG", "a.jpg", "a.png"]
    assert column(tmp_path, "caption") == ["loud", "shared", "shared"]


def test_links_out_of_the_folder_are_not_followed(tmp_path, capsys):
    source, outside = fill(tmp_path / "mine"), fill(tmp_path / "outside")
    (source / "secret.jpg").symlink_to(outside / "n.0.jpg")
    (source / "secret.txt").symlink_to(outside / "n.0.txt")
    (source / "n.3.txt").unlink()
    (source / "n.3.txt").symlink_to(outside / "n.0.txt")
    (source / "all").symlink_to(outside)
    (source / "loop").symlink_to(source)
    (source / "twin.jpg").symlink_to("n.0.jpg")  # inside: it may
    (source / "twin.txt").symlink_to("n.0.txt")
    paths = column(source, "path")
    assert len(paths) == len(KINDS) + 1 and "twin.jpg" in paths
    assert dict(zip(paths, column(source, "caption"), strict=True))["n.3.webp"] is None
    assert build(source, tmp_path / "out") == 0
    assert "left alone: 5, e.g. all" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    name = b"caf\xe9"
    folder = bytes(tmp_path)
    Path((folder + b"/" + name + b".png").decode(errors="surrogateescape")).write_bytes(
        encoded(picture(0))
    )
    Path((folder + b"/" + name + b".txt").decode(errors="surrogateescape")).write_text("coffee")
    (record,) = records(tmp_path)
    assert record.columns == {"path": "caf\ufffd.png", "folder": "", "caption": "coffee"}
    assert record.image is not None


def test_pictures_are_read_one_by_one(tmp_path):
    """A picture that disappears after the first was read fails only once its turn comes."""
    source = fill(tmp_path / "mine")
    corpus = Corpus(SourceOptions(source=str(source)))
    reading = corpus.records(corpus.columns, with_images=True)
    assert next(reading).columns["path"] == "cats/n.1.JPEG"
    (source / "n.6.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"n\.6\.tif"):
        list(reading)


def test_a_file_that_no_picture_is_as_large_as_is_not_read_in_full(tmp_path):
    source = fill(tmp_path / "mine")
    with (source / "n.0.jpg").open("r+b") as file:
        file.truncate(1 << 40)  # as large as a disk, and takes no place on it
    corpus = Corpus(SourceOptions(source=str(source), where="path = 'n.0.jpg'"))
    (record,) = corpus.records(corpus.columns, with_images=True)
    assert record.image is None and record.refused == "image_too_large"


FOLDERS = {
    "empty": (lambda folder: None, ["no files", "NAME.jpg and NAME.txt", "DIR/*.parquet"]),
    "texts alone": (lambda f: (f / "a.txt").write_text("a"), ["1 .txt", "NAME.jpg"]),
    "tables": (lambda f: (f / "a.csv").write_text("a,b"), ["1 .csv", "NAME.jpg"]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_something_else_is_refused(name, tmp_path, capsys):
    make, parts = FOLDERS[name]
    (tmp_path / "mine").mkdir()
    make(tmp_path / "mine")
    assert build(tmp_path / "mine", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: source=") and "\n" not in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("name", ["list.txt", "a.png"])
def test_a_file_of_another_kind_is_refused(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(encoded(picture(0)))
    for source in (tmp_path / name, tmp_path / f"*{name[1:]}"):  # as a path, and as a pattern
        assert build(source, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert f"{name}: not a readable Parquet file" in error and "NAME.jpg and NAME.txt" in error


def test_pictures_alone_are_told_of_the_remedy(tmp_path, capsys):
    (tmp_path / "mine/cat").mkdir(parents=True)
    (tmp_path / "mine/cat/1.png").write_bytes(encoded(picture(0)))
    assert build(tmp_path / "mine", tmp_path / "out") == 2
    note, error = capsys.readouterr().err.splitlines()
    assert "1 of 1" in note and "no row" in error
    remedy = note.partition('--caption "')[2].partition('"')[0]
    assert build(tmp_path / "mine", tmp_path / "out", "--caption", remedy) == 0
    assert members(tmp_path / "out", ".txt") == [b"a photo of cat"]


def test_a_built_dataset_is_no_source(tmp_path, capsys):
    assert build(fill(tmp_path / "mine"), tmp_path / "out") == 0
    assert build(tmp_path / "out", tmp_path / "again") == 2
    assert "ready for training" in capsys.readouterr().err


def test_an_image_column_of_a_folder_is_refused(tmp_path, capsys):
    assert build(fill(tmp_path / "mine"), tmp_path / "out", "--image-column", "jpg") == 2
    assert "leave out --image-column" in capsys.readouterr().err


def test_what_img2dataset_writes_as_files_is_a_folder_of_pictures(tmp_path, capsys):
    """Its Parquet files hold links and outcomes, no pictures."""
    source = fill(tmp_path / "mine")
    write_corpus(source / "00000.parquet", {"url": ["http://host/x.jpg"], "caption": ["no"]})
    (source / "00000_stats.json").write_text("{}")
    (source / "cats/n.1.json").write_text('{"url": "http://host/x.jpg", "caption": "as found"}')
    assert build(source, tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").samples == len(KINDS)
    note = capsys.readouterr().err
    assert "left alone" in note and "1 .json" in note and "1 .parquet" in note
    assert column(source, "url", "url IS NOT NULL") == ["http://host/x.jpg"]
    assert column(source, "caption", "url IS NOT NULL") == [caption(1)]


def test_parquet_beside_a_stray_picture_stays_a_parquet_corpus(tmp_path):
    table = {"image": [encoded(picture(0))], "caption": ["in the table"]}
    write_corpus(tmp_path / "a.parquet", table)
    (tmp_path / "preview.png").write_bytes(encoded(picture(1)))
    assert column(tmp_path, "caption") == ["in the table"]


def test_parquet_behind_links_is_read_and_pictures_behind_links_are_not(tmp_path, capsys):
    """A snapshot in the cache of huggingface_hub is links to files that lie elsewhere."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    table = {"image": [encoded(picture(0))], "caption": ["in the table"]}
    (snapshot / "a.parquet").symlink_to(write_corpus(tmp_path / "blob", table))
    assert column(snapshot, "caption") == ["in the table"]
    (snapshot / "a.parquet").unlink()
    (snapshot / "a.png").symlink_to(tmp_path / "blob")
    assert build(snapshot, tmp_path / "out") == 2
    assert "holds 1 symbolic links out of it;" in capsys.readouterr().err
