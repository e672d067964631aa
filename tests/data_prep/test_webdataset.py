"""WebDataset tars give the records that the webdataset package itself reads; damage is named."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from data_prep_corpus import caption, encoded, picture

from data_prep.__main__ import main
from data_prep.sources import Corpus, Record, SourceOptions
from pretrain.dataset.manifest import read_manifest


def write_tar(path: Path, count: int = 6, kind: int = tarfile.USTAR_FORMAT) -> Path:
    """As img2dataset writes: KEY.jpg, KEY.txt and KEY.json, one record after the other."""
    with tarfile.open(path, "w", format=kind) as tar:
        for i in range(count):
            details = {"url": f"http://host/{i}", "width": 96, "score": i / 2, "exif": {"a": 1}}
            add(tar, f"{i:05d}.jpg", encoded(picture(i), "JPEG"))
            add(tar, f"{i:05d}.txt", caption(i).encode())
            add(tar, f"{i:05d}.json", json.dumps(details).encode())
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def records(source: Path, where: str | None = None) -> list[Record]:
    corpus = Corpus(SourceOptions(source=str(source), where=where))
    return list(corpus.records(corpus.columns, with_images=True))


def error_of(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["build", "--source", str(source), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error, error
    assert not out.exists()
    return error


def test_the_records_are_those_of_the_webdataset_package(tmp_path):
    os.environ["WDS_SECURE"] = "1"  # before the import, or pickles in a tar would run
    import webdataset

    write_tar(tmp_path / "00000.tar")
    theirs = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    ours = records(tmp_path)
    assert len(ours) == len(theirs) == 6
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.image == other["jpg"]
        assert mine.columns["caption"] == other["txt"].decode()
        assert mine.columns["key"] == other["__key__"]
        details = json.loads(other["json"])
        assert mine.columns["score"] == details["score"]
        assert json.loads(mine.columns["exif"]) == details["exif"]
    assert [r.columns["key"] for r in records(tmp_path, "score > 1.5")] == ["00004", "00005"]
    twice = "score < 0.6 OR score > 2"  # a column may be named more than once
    assert [r.columns["key"] for r in records(tmp_path, twice)] == ["00000", "00001", "00005"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_format_are_whole(tmp_path, kind):
    name = "/".join(["../" + "x" * 70, "y" * 70, "ü" if kind != tarfile.USTAR_FORMAT else "u"])
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        add(tar, name + ".png", encoded(picture(0)))
        add(tar, name + ".txt", b"a caption")
    (record,) = records(tmp_path / "a.tar")
    # A name's first dot after the last slash ends the key; nothing is extracted to it.
    assert record.columns["key"] == name and record.columns["caption"] == "a caption"
    assert record.image == encoded(picture(0))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_tar_that_is_cut_is_never_half_read(tmp_path, capsys, keep):
    whole = write_tar(tmp_path / "a.tar")
    bad = write_tar(tmp_path / "b.tar")
    with tarfile.open(bad) as tar:
        last = tar.getmembers()[-1]
    bad.write_bytes(whole.read_bytes()[: int((last.offset_data + last.size) * keep)])
    error = error_of(tmp_path, tmp_path / "out", capsys)
    assert "b.tar, byte" in error and "cut short" in error and "leave it out" in error


def test_a_damaged_header_in_the_middle_is_named(tmp_path, capsys):
    """Where the standard library ends in silence."""
    bad = write_tar(tmp_path / "a.tar")
    with tarfile.open(bad) as tar:
        offset = tar.getmembers()[9].offset
    content = bytearray(bad.read_bytes())
    content[offset + 3] ^= 1
    bad.write_bytes(content)
    with tarfile.open(bad) as tar:
        assert len(tar.getmembers()) == 9
    assert f"a.tar, byte {offset:,}: no tar header" in error_of(bad, tmp_path / "out", capsys)


def test_joined_compressed_and_scattered_tars_are_refused(tmp_path, capsys):
    one = write_tar(tmp_path / "one.tar").read_bytes()
    (tmp_path / "joined.tar").write_bytes(one + one)
    assert "more follows" in error_of(tmp_path / "joined.tar", tmp_path / "out", capsys)
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        add(tar, "a.png", encoded(picture(0)))
    assert "gzip file" in error_of(tmp_path / "zipped.tar", tmp_path / "out", capsys)
    with tarfile.open(tmp_path / "apart.tar", "w") as tar:
        for suffix in ("png", "txt"):
            for name in ("a", "b"):
                add(tar, f"{name}.{suffix}", encoded(picture(0)))
    error = error_of(tmp_path / "apart.tar", tmp_path / "out", capsys)
    assert "in several places" in error and "--sort=name" in error


def test_incomplete_records_are_counted_and_said(tmp_path, capsys):
    with tarfile.open(write_tar(tmp_path / "a.tar"), "a") as tar:
        add(tar, "x.txt", b"no picture here")
        add(tar, "y.png", encoded(picture(9)))
        add(tar, "y.json", b"{broken")
        add(tar, "y.txt", b"a caption of y")
        add(tar, "y.pyd", b"a pickle")
    assert main(["build", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    notes = capsys.readouterr().err
    assert "without a picture: 1 of 8" in notes and "no JSON object: 1" in notes
    assert "left alone: 1 .pyd" in notes
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.samples, manifest.rejected["image_missing"]) == (7, 1)


def test_hidden_files_and_folders_of_a_name_are_no_data(tmp_path, capsys):
    """What macOS and notebooks leave beside tars, in them, and beside Parquet files."""
    source = tmp_path / "tars"
    (source / ".ipynb_checkpoints").mkdir(parents=True)
    write_tar(source / ".ipynb_checkpoints/00000-checkpoint.tar")
    (source / "._00000.tar").write_bytes(b"\0\5\x16\7")
    (source / "folder.tar").mkdir()
    whole = write_tar(source / "00000.tar")
    with tarfile.open(whole, "a") as tar:
        for name in ("photos/._1.jpg", ".DS_Store", "._00000.jpg", "d/.hidden/1.jpg"):
            add(tar, name, b"\0\5\x16\7")
    assert [one.columns["key"] for one in records(source)] == [f"{n:05d}" for n in range(6)]
    assert main(["build", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "hidden" in told.err
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.samples, sum(manifest.rejected.values())) == (6, 0)
