"""Labelled sets are whole, or refused by name: nothing of one is passed over in silence."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from pretrain.evaluation.classification import class_names
from pretrain.evaluation.labelled import open_labelled

RNG = np.random.default_rng(0)


def picture(form: str = "PNG", **how) -> bytes:
    content = io.BytesIO()
    pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(content, form, **how)
    return content.getvalue()


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def six(path: Path) -> Path:
    members = [(f"{n}.{end}", content) for n in range(6)
               for end, content in (("png", picture()), ("cls", b"1"))]  # fmt: skip
    return tar_of(path, members)


def headers(tar: Path) -> list[int]:
    with tarfile.open(tar) as archive:
        return [member.offset for member in archive]


def test_a_damaged_header_is_no_end_of_the_set(tmp_path):
    tar = six(tmp_path / "x.tar")
    assert len(open_labelled("images", tar).labels) == 6
    content = bytearray(tar.read_bytes())
    content[headers(tar)[6] + 3] ^= 1
    (tmp_path / "flipped.tar").write_bytes(content)
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[: headers(tar)[6]])
    for name in ("flipped", "cut"):
        with pytest.raises(ValueError, match=rf"images: .*{name}\.tar, byte [\d,]+: "):
            open_labelled("images", tmp_path / f"{name}.tar")


def test_a_key_with_two_pictures_or_classes_is_refused(tmp_path):
    for twice in ("0.jpg", "0.png", "0.cls"):
        tar = tar_of(tmp_path / "x.tar", [("0.png", picture()), ("0.cls", b"1"), (twice, b"1")])
        with pytest.raises(ValueError, match=f"{twice} is the second of key '0'"):
            open_labelled("images", tar)


def test_hidden_files_are_no_data(tmp_path):
    members = [("._0.png", b"x"), ("0.png", picture()), ("0.cls", b"cat"), ("a/.b/1.png", b"x")]
    folder = tmp_path / "tars"
    folder.mkdir()
    tar_of(folder / "x.tar", members)
    (folder / "._x.tar").write_bytes(b"\0")
    (folder / "y.tar").mkdir()
    assert open_labelled("images", folder).labels == ["cat"]
    classes = tmp_path / "classes"
    for name in ("cat/0.png", "cat/._0.png", "cat/.thumbs/0.png", ".ipynb_checkpoints/1.png"):
        path = classes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    found = open_labelled("images", classes)
    assert (found.labels, found.order) == (["cat"], ["cat"])


@pytest.mark.parametrize("form", ["avif", "ppm", "webp", "png"])
def test_every_format_that_is_prepared_is_judged_by_too(form, tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / f"0.{form}").write_bytes(picture(form.upper()))
    assert open_labelled("images", tmp_path).read(0).shape == (20, 30, 3)
    tar = tar_of(tmp_path / "x.tar", [(f"0.{form.upper()}", picture(form.upper())),
                                      ("0.CLS", "\ufeffcat".encode())])  # fmt: skip
    found = open_labelled("images", tar)
    assert found.labels == ["cat"] and found.read(0).shape == (20, 30, 3)


def test_a_picture_that_starts_a_program_elsewhere_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match=r"0\.png cannot be read \(no whole picture of JPEG"):
        open_labelled("images", tmp_path).read(0)


def test_saved_sets_of_any_kind(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.Value("string")}
    )
    rows = [{"image": {"bytes": picture(), "path": None},
             "label": label} for label in ("cat", "dog")]  # fmt: skip
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(str(tmp_path / "one"))
    assert open_labelled("images", tmp_path / "one").read(1).shape == (20, 30, 3)
    datasets.DatasetDict(test=saved).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"splits \['test'\]: name the folder of one"):
        open_labelled("images", tmp_path / "splits")
    datasets.Dataset.from_list([*rows, {**rows[0], "label": None}], features=features).save_to_disk(
        str(tmp_path / "none")
    )
    with pytest.raises(ValueError, match="1 pictures have no class"):
        open_labelled("images", tmp_path / "none")


def classes_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(picture())
    return tmp_path / "set"


@pytest.mark.parametrize("text", ["dog\ncat\n", "- dog\n- cat\n"])
def test_a_byte_order_mark_moves_no_class(text, tmp_path):
    found = open_labelled("images", classes_of(tmp_path, "cat", "dog"))
    file = tmp_path / ("names.yaml" if text.startswith("-") else "names.txt")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert class_names(found, file) == (["dog", "cat"], {"dog": 0, "cat": 1})


@pytest.mark.parametrize("text", ["- cat\n- null\n", "cat: [a]\ndog: b\n", "- cat\n- {a: b}\n"])
def test_a_name_that_is_no_text_is_refused(text, tmp_path):
    (tmp_path / "names.yaml").write_text(text)
    found = open_labelled("images", classes_of(tmp_path, "cat", "dog"))
    with pytest.raises(ValueError, match="is not text"):
        class_names(found, tmp_path / "names.yaml")


def test_names_taken_by_order_are_said_where_most_are_classes(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("dog\ncats\n")
    found = open_labelled(
        "images",
        classes_of(
            tmp_path,
            "cat",
            "dog",
        ),
    )
    assert class_names(found, tmp_path / "names.txt")[1] == {"cat": 0, "dog": 1}
    assert "1 of 2 classes are among its names" in capsys.readouterr().err


def test_other_digits_are_no_numbers(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    found = open_labelled("images", classes_of(tmp_path, "¹", "²"))
    assert class_names(found, tmp_path / "names.txt")[1] == {"²": 0, "¹": 1}  # by code point
