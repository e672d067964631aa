"""Archives are plain ustar: tarfile and tar agree with them, and damage does not pass."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from data_prep.build.ustar import encode_header, end_of_archive, padding
from data_prep.build.writer import Shard, verify_shard
from pretrain.base.files import aside
from pretrain.dataset.manifest import MEMBERS
from pretrain.dataset.tars import read_plain

SIZES = [0, 1, 511, 512, 513, 5000]


def contents() -> dict[str, bytes]:
    return {f"{i:016x}.jpg": bytes([i + 1]) * size for i, size in enumerate(SIZES)}


def archive() -> bytes:
    data = b""
    for name, content in contents().items():
        data += encode_header(name, len(content)) + content + padding(len(content))
    return data + end_of_archive(len(data))


def test_the_standard_library_and_tar_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive())
    assert path.stat().st_size % 10240 == 0
    with tarfile.open(path, "r:", format=tarfile.USTAR_FORMAT) as tar:
        entries = tar.getmembers()
        found = {entry.name: tar.extractfile(entry).read() for entry in entries}  # type: ignore[union-attr]
        offsets = [entry.offset_data for entry in entries]
    assert found == contents()
    assert all((e.mtime, e.uid, e.gid, e.uname, e.gname) == (0, 0, 0, "", "") for e in entries)
    assert [offset for _, offset, _ in read_plain(path)] == offsets
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == list(contents()) and listed.stderr == ""


def test_an_archive_of_the_standard_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents().items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert {name: content for name, _, content in read_plain(path)} == contents()


@pytest.mark.parametrize("end", [100, 600, 1500, 6000, len(archive()) - 10240, 0])
def test_a_cut_archive_is_an_error(tmp_path: Path, end: int) -> None:
    (tmp_path / "a.tar").write_bytes(archive()[:end])
    with pytest.raises(OSError, match=r"cut short|no proper end"):
        list(read_plain(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_anything_but_a_file_is_an_error(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(OSError, match="no plain header of a file"):
        list(read_plain(tmp_path / "a.tar"))


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_header("x" * 101, 1)


def test_a_shard_is_read_back_before_it_gets_its_name(tmp_path: Path) -> None:
    with aside(tmp_path / "00003.tar") as file:
        shard = Shard(file)
        for i in range(4):
            members = {member: f"{member}{i}".encode() for member in MEMBERS}
            shard.add(f"{i:016x}", members, [2], {})
        info = shard.finish("full/00003.tar")
    assert (info.samples, info.file) == (4, "full/00003.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["00003.tar"]
    good = (tmp_path / "00003.tar").read_bytes()
    verify_shard(tmp_path / "00003.tar", shard.rows)
    places: list[int] = []
    for _, offset, content in read_plain(tmp_path / "00003.tar"):
        # In the name, size, checksum, type and magic; the first and last byte of the content.
        places += [offset - 512 + at for at in (3, 130, 150, 156, 258)]
        places += [offset, offset + len(content) - 1]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1
        (tmp_path / "damaged.tar").write_bytes(damaged)
        with pytest.raises(OSError, match=r"damaged\.tar"):
            verify_shard(tmp_path / "damaged.tar", shard.rows)
    with pytest.raises(OSError, match="not read back as written"):
        verify_shard(tmp_path / "00003.tar", shard.rows[:-1])
