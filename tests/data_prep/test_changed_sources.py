"""A build and its source belong together: what changed under it is never mixed in."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import encoded, picture, write_tar

from data_prep.__main__ import main
from data_prep.build import pipeline
from data_prep.sources.webdataset import WebDatasetSource
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset

COUNT = 24
TEXTS = [f"a drawing of number {number:02d}" for number in range(COUNT)]


def pictures() -> list[bytes]:
    return [encoded(picture(number)) for number in range(COUNT)]


def write_parquet(folder: Path, texts: list[str]) -> Path:
    for number in range(3):
        part = slice(number * 8, number * 8 + 8)
        table = pa.table({"image": pictures()[part], "caption": texts[part]})
        pq.write_table(table, folder / f"{number}.parquet", compression="none")
    return folder


def write_tars(folder: Path, texts: list[str]) -> Path:
    for number in range(3):
        members: dict[str, bytes] = {}
        for row in range(number * 8, number * 8 + 8):
            members |= {f"{row:03d}.png": pictures()[row], f"{row:03d}.txt": texts[row].encode()}
        write_tar(folder / f"{number}.tar", members)
    return folder


def write_folder(folder: Path, texts: list[str]) -> Path:
    for row, (data, text) in enumerate(zip(pictures(), texts, strict=True)):
        (folder / f"{row:03d}.png").write_bytes(data)
        (folder / f"{row:03d}.txt").write_text(text)
    return folder


def write_metadata(folder: Path, texts: list[str]) -> Path:
    for row, data in enumerate(pictures()):
        (folder / f"{row:03d}.png").write_bytes(data)
    lines = [json.dumps({"file_name": f"{row:03d}.png", "text": t}) for row, t in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_saved(folder: Path, texts: list[str]) -> Path:
    dataset = datasets.Dataset.from_dict({"image": pictures(), "caption": texts})
    dataset.save_to_disk(str(folder))
    return folder


KINDS: dict[str, Callable[[Path, list[str]], Path]] = {
    "parquet": write_parquet,
    "tars": write_tars,
    "folder": write_folder,
    "imagefolder": write_metadata,
    "saved": write_saved,
}


def build(source: Path, *more: str) -> int:
    return main(
        [
            *("build", "--source", str(source), "--out", str(source.parent / "out")),
            *("--tiers", "48:90", "--vocab-size", "300", "--shard-samples", "4"),
            *("--workers", "1", "--tagger", "none", *more),
        ]
    )


def share(source: Path, number: int, *more: str) -> int:
    return build(source, "--task-count", "2", "--task-index", str(number), *more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_changed_between_two_shares_is_refused(kind, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    KINDS[kind](source, TEXTS)
    assert share(source, 0) == 0
    kept = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in kept}
    KINDS[kind](source, [text.replace("number", "NUMBER") for text in TEXTS])  # of equal lengths
    capsys.readouterr()
    assert share(source, 1) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(source) in told or "other files" in told
    assert "--overwrite" in told
    for path, content in kept.items():
        path.write_bytes(content)
        os.utime(path, ns=(times[path], times[path]))
    assert share(source, 1) == 0
    assert main(["merge", str(tmp_path / "out")]) == 0
    assert read_manifest(tmp_path / "out").samples == COUNT
    assert not (tmp_path / "out/.build").exists()


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_finished_build_of_edited_captions_is_not_finished(kind, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    KINDS[kind](source, TEXTS)
    assert build(source) == 0
    capsys.readouterr()
    assert build(source) == 0 and "is finished" in capsys.readouterr().err
    for path in source.iterdir():
        os.utime(path, ns=(1, 1))  # a copy elsewhere is the same corpus
    assert build(source) == 0 and "is finished" in capsys.readouterr().err
    KINDS[kind](source, [text.replace("drawing", "picture of a thing") for text in TEXTS])
    assert build(source) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "already holds a dataset made with other files" in told and "--overwrite" in told
    assert build(source, "--overwrite") == 0


@pytest.mark.parametrize("kind", ["tars", "folder", "saved"])
def test_overwrite_begins_anew_where_the_source_changed(kind, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    KINDS[kind](source, TEXTS)
    assert share(source, 0) == 0
    KINDS[kind](source, [text.replace("number", "NUMBER") for text in TEXTS])  # of equal lengths
    assert build(source, "--overwrite") == 0
    dataset = Dataset(tmp_path / "out", "48")
    captions = [dataset.read_json(row)["captions"]["caption"] for row in range(COUNT)]
    assert all("NUMBER" in caption for caption in captions), captions


def test_a_source_that_changes_while_it_is_read_is_said_at_the_end(tmp_path, monkeypatch, capsys):
    source = tmp_path / "source"
    source.mkdir()
    write_parquet(source, TEXTS)
    run = pipeline.run_in_pool

    def with_a_change(*arguments):
        yield from run(*arguments)
        os.utime(source / "1.parquet", ns=(1, 1))

    monkeypatch.setattr(pipeline, "run_in_pool", with_a_change)
    assert build(source) == 2
    assert "have changed since" in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out/.build").glob("*/*.json"))  # what was read counts for nothing


def test_shares_take_over_what_the_first_found_in_the_tars(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    write_tars(source, TEXTS)
    assert build(source, "--task-count", "3", "--task-index", "2") == 0

    def looks(*_: object) -> None:
        raise AssertionError("it looks through the tars again")

    with monkeypatch.context() as patched:
        patched.setattr(WebDatasetSource, "look_through", looks)
        assert build(source, "--task-count", "3", "--task-index", "0") == 0
        assert build(source, "--task-count", "3", "--task-index", "1") == 0
    assert main(["merge", str(tmp_path / "out")]) == 0
    alone = tmp_path / "alone/source"
    alone.mkdir(parents=True)
    write_tars(alone, TEXTS)
    assert build(alone) == 0
    one, other = (read_manifest(folder / "out") for folder in (tmp_path, tmp_path / "alone"))
    assert one == other
