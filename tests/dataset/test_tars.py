"""One walker of tars: every file of an archive, or the byte at which it is damaged."""

import io
import tarfile
from pathlib import Path

import pytest

from pretrain.dataset.tars import HEADER, is_hidden, read_plain, read_tar


def archive(path: Path, names: list[str], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for place, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = place * 300
            tar.addfile(member, io.BytesIO(bytes([place]) * member.size))
    return path


def walk(path: Path) -> list[tuple[str, int, int]]:
    with path.open("rb") as file:
        return [(member.name, member.offset, member.size) for member in read_tar(path, file)]


NAMES = ["a.jpg", "d/" * 60 + "long.jpg", "ü/b.jpg", "." * 3 + "/c.jpg", "x" * 200]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_places_are_those_of_the_standard_library(form, tmp_path):
    path = archive(tmp_path / "x.tar", NAMES, form)
    with tarfile.open(path) as tar:
        assert walk(path) == [(one.name, one.offset_data, one.size) for one in tar]


def test_sums_of_signed_bytes_are_read_as_the_standard_library_reads_them(tmp_path):
    path = archive(tmp_path / "x.tar", ["ü.jpg"])
    content = bytearray(path.read_bytes())
    fields = HEADER.unpack(content[:512])
    signed = sum(byte - 256 * (byte > 127) for byte in content[:512]) - sum(fields[6]) + 8 * 32
    content[148:156] = b"%06o\0 " % signed
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["ü.jpg"]
    assert [name for name, _, _ in walk(path)] == ["ü.jpg"]


def test_damage_is_named_with_its_byte(tmp_path):
    path = archive(tmp_path / "x.tar", ["a", "b", "c"])
    with tarfile.open(path) as tar:
        at = tar.getmembers()[1].offset
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[at] ^= 4
    for content in (bytes(flipped), whole[:at], whole[: at + 100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.tar, byte {at:,}: "):
            walk(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="more follows the end of the archive"):
        walk(path)


def test_our_shards_have_plain_headers_only(tmp_path):
    path = archive(tmp_path / "x.tar", ["a", "b"], tarfile.USTAR_FORMAT)
    assert [(name, len(content)) for name, _, content in read_plain(path)] == [("a", 0), ("b", 300)]
    with pytest.raises(OSError, match="no plain header of a file"):
        list(read_plain(archive(tmp_path / "y.tar", ["x" * 200])))


def test_hidden_names():
    shown = ["a.jpg", "./a.jpg", "d/../a.jpg", "a/b..jpg"]
    hidden = ["._a.jpg", "d/.DS_Store", ".git/a.jpg", "./.a"]
    assert [is_hidden(name) for name in shown + hidden] == [False] * 4 + [True] * 4
