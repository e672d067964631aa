"""NAME.json beside a picture becomes columns, and its caption where no NAME.txt stands."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from data_prep_corpus import encoded, picture

from data_prep.__main__ import main
from data_prep.sources import Corpus, SourceOptions
from pretrain.dataset.manifest import read_manifest


def fill(folder: Path, metadata: list[Any]) -> Path:
    """A picture for each: an object becomes its .json, bytes are it."""
    folder.mkdir()
    for i, value in enumerate(metadata):
        (folder / f"{i}.png").write_bytes(encoded(picture(i)))
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / f"{i}.json").write_bytes(text)
    return folder


def rows(folder: Path, where: str | None = None) -> list[dict[str, Any]]:
    corpus = Corpus(SourceOptions(source=str(folder), where=where))
    return [record.columns for record in corpus.records(corpus.columns, with_images=True)]


def build(source: Path, out: Path, *more: str) -> int:
    return main(["build", "--source", str(source), "--out", str(out), *more])


def members(out: Path, suffix: str) -> list[bytes]:
    with tarfile.open(out / "160/00000.tar") as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith(suffix)]  # type: ignore[union-attr]


def test_keys_become_columns_of_their_types(tmp_path):
    values = [
        {"caption": "a cat", "likes": 3, "score": 0.5, "tags": ["x", "y"], "safe": True},
        {"caption": "a dog", "likes": 70, "exif": {"iso": 100}, "score": 1, "path": "/etc/passwd"},
    ]
    source = fill(tmp_path / "mine", values)
    empty = dict.fromkeys(("likes", "score", "tags", "safe", "exif"))
    own = [{"path": f"{i}.png", "folder": ""} for i in range(2)]
    wanted = [{**empty, **value, **place} for value, place in zip(values, own, strict=True)]
    wanted[1]["exif"] = '{"iso": 100}'
    assert rows(source) == wanted
    assert [row["caption"] for row in rows(source, "likes > 10 AND score >= 1")] == ["a dog"]
    assert build(source, tmp_path / "out", "--where", "likes < 10") == 0
    (details,) = map(json.loads, members(tmp_path / "out", ".json"))
    assert details["captions"] == {"caption": "a cat"} and details["meta"]["tags"] == ["x", "y"]
    (file,) = read_manifest(tmp_path / "out").provenance["files"]
    assert len(file.pop("listing_sha256")) == 64
    assert file == {"name": "mine", "pictures": 2, "texts": 0, "metadata": 2}


@pytest.mark.parametrize("name", ["text", "alt_text", "TXT", "title"])
def test_a_caption_is_found_under_the_usual_names(name, tmp_path, capsys):
    source = fill(tmp_path / "mine", [{name: "a cat", "width": 3}])
    assert build(source, tmp_path / "out") == 0
    assert members(tmp_path / "out", ".txt") == [b"a cat"]
    assert f"captions are read from {name!r} of .json files: 1" in capsys.readouterr().err


def test_a_text_is_the_caption_where_both_stand(tmp_path):
    source = fill(tmp_path / "mine", [{"caption": "crawled", "n": 1}, {"caption": "alone", "n": 2}])
    (source / "0.txt").write_text("written by hand")
    (source / "2.png").write_bytes(encoded(picture(2)))
    (source / "2.txt").write_text("no metadata")
    assert [(row["caption"], row["n"]) for row in rows(source)] == [
        *(("written by hand", 1), ("alone", 2), ("no metadata", None))
    ]


def test_a_list_of_captions_and_templates_over_columns(tmp_path):
    source = fill(tmp_path / "mine", [{"caption": ["a", "b"], "artist": "Ann"}, {"caption": []}])
    assert [row["caption"] for row in rows(source)] == [["a", "b"], []]
    assert build(source, tmp_path / "out", "--caption", "by=drawn by {artist}") == 0
    assert members(tmp_path / "out", ".txt") == [b"drawn by Ann"]


def test_no_clear_caption_is_said_and_named(tmp_path, capsys):
    source = fill(tmp_path / "mine", [{"text": "one", "alt": "other"}, {"caption": "clear"}])
    assert build(source, tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").rejected["caption_empty"] == 1
    assert "several that could be: 1, e.g. 0.png" in capsys.readouterr().err
    again = ["--caption", "caption={text}", "--overwrite"]
    assert build(source, tmp_path / "out", *again) == 0
    assert members(tmp_path / "out", ".txt") == [b"one"]


BROKEN = {
    "cut": b'{"caption": "a c',
    "a list": b'["a", "b"]',
    "not UTF-8": b'{"caption": "caf\xe9"}',
    "empty": b"",
    "nested without end": b'{"a":' * 50_000,
    "giant": b'{"a": "' + b"x" * (1 << 20) + b'"}',
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("text", [None, "a caption of its own"])
def test_a_broken_json_is_a_counted_rejection(text, tmp_path, capsys):
    good = {"caption": "a cat", "n": 1}
    source = fill(tmp_path / "mine", [b"\xef\xbb\xbf" + json.dumps(good).encode()])
    for i, (name, data) in enumerate(BROKEN.items(), start=1):
        (source / f"{name}.png").write_bytes(encoded(picture(i)))
        (source / f"{name}.json").write_bytes(data)
        if text is not None:
            (source / f"{name}.txt").write_text(text)
    assert build(source, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    counted = {reason: count for reason, count in manifest.rejected.items() if count}
    assert counted == {"metadata_unreadable": len(BROKEN)} and manifest.samples == 1
    assert f"hold no JSON object: {len(BROKEN)}, e.g. a list.json" in capsys.readouterr().err


def test_a_json_behind_a_link_out_of_the_folder_is_not_read(tmp_path):
    source = fill(tmp_path / "mine", [{"caption": "inside"}])
    outside = fill(tmp_path / "outside", [{"caption": "secret"}])
    (source / "1.png").write_bytes(encoded(picture(1)))
    (source / "1.json").symlink_to(outside / "0.json")
    assert [row["caption"] for row in rows(source)] == ["inside", None]
