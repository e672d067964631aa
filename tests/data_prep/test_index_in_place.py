"""Tars of anyone's making are trained on as they are: no picture is copied, none is read wrong."""

import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import caption, encoded, picture, write_tar
from forked_runs import trained
from PIL import Image

from data_prep.__main__ import main as data_prep
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset, SampleError
from pretrain.dataset.shards import ShardOptions

OPTIONS = ("--vocab-size", "300", "--workers", "1", "--tagger", "none")
KINDS = ("JPEG", "PNG", "WEBP")


def pictures() -> dict[str, bytes]:
    """Of every kind that training decodes, by member names; 40 in all."""
    special = {
        "cmyk.jpg": encoded(picture(90).convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(picture(91), "JPEG", exif=turned()),
        "progressive.jpeg": encoded(picture(92), "JPEG", progressive=True),
        "grey.jpg": encoded(picture(93).convert("L"), "JPEG"),
    }
    usual = {}
    for i in range(36):
        kind = KINDS[i % 3]
        suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
        usual[f"{i:04d}.{suffix}"] = encoded(picture(i), kind)
    return {**usual, **special}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    return exif


def members_of(name: str, content: bytes, place: int) -> dict[str, bytes]:
    key = name.partition(".")[0]
    return {
        name: content,
        f"{key}.txt": caption(place).encode(),
        f"{key}.json": json.dumps({"url": f"http://host/{key}", "place": place}).encode(),
    }


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three archives: of the webdataset package, of tarfile with GNU long names, and with pax."""
    os.environ["WDS_SECURE"] = "1"  # before the import, or pickles in a tar would run
    from webdataset import TarWriter

    folder = tmp_path_factory.mktemp("tars")
    (folder / "below").mkdir()
    items = list(pictures().items())
    with (folder / "00000.tar").open("wb") as file, TarWriter(file) as writer:
        for place, (name, content) in enumerate(items[:15]):
            key, _, suffix = name.partition(".")
            details = {"url": f"http://host/{key}", "place": place}
            text = caption(place)
            writer.write({"__key__": key, suffix: content, "txt": text, "json": details})
    formats = {"00001.tar": tarfile.GNU_FORMAT, "below/00002.tar": tarfile.PAX_FORMAT}
    for number, (name, kind) in enumerate(formats.items(), 1):
        found: dict[str, bytes] = {}
        for place in range(number * 15, min(number * 15 + 15, len(items))):
            key, content = items[place]
            found |= members_of("x" * 120 + "/" + "ü" * 40 + key, content, place)
        write_tar(folder / name, found, kind)
    return folder


def index(tars: Path, out: Path, *more: str) -> Path:
    assert data_prep(["index", str(tars), "--out", str(out), *OPTIONS, *more]) == 0
    return out


@pytest.fixture(scope="module")
def dataset(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return index(tars, tmp_path_factory.mktemp("indexed") / "set")


def read_all(directory: Path) -> list[bytes]:
    one = Dataset(directory, "full")
    return [one.read(row).jpeg for row in range(len(one))]


def test_samples_are_the_tars_members_byte_for_byte(dataset, tars):
    one = Dataset(dataset, "full")
    wanted = list(pictures().values())
    assert len(one) == len(wanted) == 40
    for row, content in enumerate(wanted):
        sample = one.read(row)
        assert sample.jpeg == content, row
        told = one.read_json(row)
        assert told["meta"]["place"] == row and told["captions"] == {"caption": caption(row)}
        assert one.tokenizer().encode(caption(row)) == sample.ids.tolist()
    stored = sum(path.stat().st_size for path in dataset.rglob("*.tar"))
    assert one.manifest.tiers["full"].bytes == stored + sum(
        path.stat().st_size for path in tars.rglob("*.tar")
    )
    assert b"".join(wanted[:1]) not in b"".join(p.read_bytes() for p in dataset.rglob("*.tar"))


def test_every_kind_decodes_to_what_a_build_of_the_same_tars_stores(dataset, tars, tmp_path):
    """PNG, WebP, four colours, a quarter turn: within what JPEG at quality 100 loses."""
    arguments = ["--source", str(tars), "--out", str(tmp_path / "built"), "--tiers", "full:100"]
    assert data_prep(["build", *arguments, *OPTIONS]) == 0
    built, mine = Dataset(tmp_path / "built", "full"), Dataset(dataset, "full")
    assert (built.index["key"] == mine.index["key"]).all()
    assert (built.index["tokens"] == mine.index["tokens"]).all()
    assert built.manifest.tokenizer == mine.manifest.tokenizer
    assert built.manifest.token_counts == mine.manifest.token_counts
    for row in range(len(mine)):
        ours, theirs = mine.read(row), built.read(row)
        assert (ours.ids == theirs.ids).all() and (ours.classes == theirs.classes).all()
        assert mine.read_json(row) == built.read_json(row)
        pixels, stored = decode(ours.jpeg).astype(int), decode(theirs.jpeg).astype(int)
        assert pixels.shape == stored.shape
        print(row, largest := np.abs(pixels - stored).max())
        assert np.abs(pixels - stored).mean() < 1.5 and largest < 60


def test_verify_and_stats_work_on_it(dataset, capsys, tmp_path):
    assert data_prep(["verify", str(dataset), "--workers", "1"]) == 0
    assert data_prep(["stats", str(dataset)]) == 0
    assert "own size" in capsys.readouterr().out
    assert data_prep(["inspect", str(dataset), "--out", str(tmp_path / "page.html")]) == 0


def test_it_is_the_same_for_any_workers_and_killed_between(dataset, tars, tmp_path):
    again = index(tars, tmp_path / "two", "--workers", "2")
    shares = ["--task-count", "2", "--task-index"]
    index(tars, tmp_path / "shares", *shares, "0")
    assert not (tmp_path / "shares/manifest.json").exists()
    index(tars, tmp_path / "shares", *shares, "1")
    assert data_prep(["merge", str(tmp_path / "shares")]) == 0
    for other in (again, tmp_path / "shares"):
        for path in sorted(p for p in dataset.rglob("*") if p.is_file()):
            same = other / path.relative_to(dataset)
            assert same.read_bytes() == path.read_bytes(), same


def test_damaged_and_repeated_members_are_counted(tmp_path, capsys):
    whole = encoded(picture(0), "JPEG")
    noise = random.Random(0).randbytes(400)
    bad = {
        "cut.jpg": whole[: len(whole) // 2],
        "noise.png": noise,
        "tiny.png": encoded(picture(1, width=8, height=8)),
        "long.png": encoded(picture(2, width=900, height=90)),
    }
    content: dict[str, bytes] = {}
    good = {"a.jpg": whole, "b.jpg": encoded(picture(3), "JPEG"), "c.png": encoded(picture(4))}
    for place, (name, data) in enumerate({**good, **bad}.items()):
        content |= members_of(name, data, place)
    content |= {"again.jpg": whole, "again.txt": caption(0).encode()}
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/0.tar", content)
    write_tar(tmp_path / "tars/1.tar", members_of("d.jpg", encoded(picture(5), "JPEG"), 11) | {
        "copy.jpg": good["b.jpg"], "copy.txt": caption(1).encode()})  # fmt: skip
    out = index(tmp_path / "tars", tmp_path / "set", "--max-aspect", "3")
    rejected = {k: v for k, v in read_manifest(out).rejected.items() if v}
    assert rejected == {
        "image_truncated": 1,
        "image_unreadable": 1,
        "image_too_small": 1,
        "image_aspect": 1,
        "duplicate_key": 2,
    }
    assert read_all(out) == [*good.values(), encoded(picture(5), "JPEG")]
    assert data_prep(["verify", str(out), "--workers", "1"]) == 0


def test_tars_that_move_are_found_by_the_root_file(tars, tmp_path):
    shutil.copytree(tars, tmp_path / "one/tars")
    out = index(tmp_path / "one/tars", tmp_path / "one/set", "--relative-root", "true")
    assert (out / "pictures_root.txt").read_text() == "../tars\n"
    (tmp_path / "one").rename(tmp_path / "two")
    moved = tmp_path / "two/set"
    assert read_all(moved) == list(pictures().values())
    (tmp_path / "two/tars").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"pictures_root\.txt names"):
        Dataset(moved, "full")
    (moved / "pictures_root.txt").write_text(f"{tmp_path / 'elsewhere'}\n")
    assert read_all(moved) == list(pictures().values())


def test_a_tar_that_changed_is_found(tars, tmp_path, capsys):
    shutil.copytree(tars, tmp_path / "tars")
    out = index(tmp_path / "tars", tmp_path / "set")
    tar = tmp_path / "tars/00001.tar"
    content = bytearray(tar.read_bytes())
    place = int(Dataset(out, "full").index[15]["jpg"]["offset"])
    content[place + 40] ^= 1
    tar.write_bytes(content)  # of the same size
    with pytest.raises(SampleError, match="crc_mismatch"):
        Dataset(out, "full").read(15)
    capsys.readouterr()
    assert data_prep(["verify", str(out), "--workers", "1"]) == 1
    assert f"00001.tar: the picture at byte {place:,}" in capsys.readouterr().out
    tar.write_bytes(content + bytes(10240))
    with pytest.raises(ValueError, match=r"00001\.tar has .* when it was indexed"):
        Dataset(out, "full")


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/hostname"])
def test_a_manifest_never_leads_out_of_the_tars_folder(dataset, tmp_path, name):
    shutil.copytree(dataset, tmp_path / "set")
    path = tmp_path / "set/manifest.json"
    told = json.loads(path.read_text())
    told["tiers"]["full"]["shards"][0]["pictures"]["file"] = name
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="is not below"):
        Dataset(tmp_path / "set", "full")


def test_a_dataset_and_its_tars_never_lie_in_one_another(tmp_path, capsys):
    (tmp_path / "tars/full").mkdir(parents=True)
    write_tar(tmp_path / "tars/full/00000.tar", members_of("a.png", encoded(picture(0)), 0))
    content = (tmp_path / "tars/full/00000.tar").read_bytes()
    for source, out in (("tars", "tars"), ("tars/full", "tars"), ("tars", "tars/set")):
        command = ["index", str(tmp_path / source), "--out", str(tmp_path / out), "--overwrite"]
        assert data_prep([*command, "true", *OPTIONS]) == 2
        assert "choose an --out beside it" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        tmp_path / "tars/full/00000.tar"
    ]
    assert (tmp_path / "tars/full/00000.tar").read_bytes() == content


def test_what_cannot_work_is_refused(dataset, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"data\.shards\.cache=.* leave it out"):
        Dataset(dataset, "full", shards=ShardOptions(cache=tmp_path / "cache"))
    for command in (
        ["join", str(tmp_path / "both"), "--source", str(dataset), "--source", str(tmp_path)],
        ["fetch", str(tmp_path / "near"), "--url", str(dataset)],
    ):
        shutil.copy(dataset / "manifest.json", tmp_path / "manifest.json")
        assert data_prep(command) == 2
        assert "in tars" in capsys.readouterr().err


def test_training_and_its_evaluation_run_on_it(dataset, tmp_path):
    more = ["--evaluation.sets", f"{{held_out: {dataset}}}", "--evaluation.every_steps", "2"]
    trained(tmp_path / "run", dataset, "--data.tier", "full", *more)
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("loss" in json.dumps(line) for line in lines)
    assert not any(line.get("replaced") for line in lines)
