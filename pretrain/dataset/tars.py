"""The one walker of tars: where each file inside an archive lies. Nothing is extracted.

The standard library's tarfile takes a damaged header in the middle for the end of the archive
(CPython, `TarFile.next`), so half of it would be lost in silence; webdataset reads through it and
imports torch. Formats: POSIX ustar and pax, GNU tar, v7; as in tar(5).
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 512
# name, mode, uid, gid, size, mtime, checksum, type, link, magic, version, owner, group, device
# major and minor, prefix
HEADER = struct.Struct("<100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
EXTENSIONS = (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL)  # of the entry that follows
EXTENSION_BYTES_CAP = 1 << 20  # of a long name or a pax header, which are read into memory
AGAIN = "get or make it again, or leave it out"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry. Bytes of a name that are no UTF-8 are escaped as in file names."""

    name: str
    begin: int  # of its first header in the archive
    offset: int  # of the content
    size: int
    regular: bool  # a plain file; else a link, a folder, a sparse file or a device


def read_tar(path: Path, file: BinaryIO, begin: int = 0) -> Iterator[Member]:
    """All entries from one's `begin` on. ValueError names the byte where the archive is damaged."""
    end = os.fstat(file.fileno()).st_size
    offset = begin
    name: str | None = None
    size: int | None = None
    while True:
        file.seek(offset)
        header = file.read(BLOCK_BYTES)
        place = f"{path}, byte {offset:,}"
        if len(header) < BLOCK_BYTES:
            raise ValueError(
                f"{place}: the archive is cut short (a whole one ends in empty blocks); {AGAIN}"
            )
        if header == bytes(BLOCK_BYTES):
            refuse_more(file, place)
            return
        fields = parse_header(header, place)
        kind, header_size = fields[7], parse_number(fields[4], header, place)
        start = offset + BLOCK_BYTES
        length = header_size
        if kind in EXTENSIONS:
            if length > EXTENSION_BYTES_CAP:
                raise ValueError(f"{place}: an extended header of {length:,} bytes; {AGAIN}")
            content = file.read(length)
            if kind == LONG_NAME:
                name = decode_name(content)
            elif kind == PAX:
                name, size = parse_pax(content, place, name)
        else:
            length = header_size if size is None else size
            yield Member(
                name=name or header_name(fields),
                begin=begin,
                offset=start,
                size=length,
                regular=kind in REGULAR,
            )
            if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                length = 0  # links, devices and folders have no content, whatever the header says
            name = size = None
        offset = start + length + -length % BLOCK_BYTES
        if kind not in EXTENSIONS:
            begin = offset
        if start + length > end:
            raise ValueError(
                f"{place}: the archive is cut short, the file that begins here does not end in it; "
                f"{AGAIN}"
            )


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, is one that people do not see: macOS and file
    managers leave `._NAME` and `.DS_Store` beside what is meant."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def read_plain(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(name, offset of the content, content) of each file of an archive as our shards are.

    OSError if anything but whole regular files behind plain headers is found.
    """
    with path.open("rb") as file:
        try:
            for member in read_tar(path, file):
                if not member.regular or member.offset != member.begin + BLOCK_BYTES:
                    raise OSError(f"{path}, byte {member.begin:,}: no plain header of a file")
                file.seek(member.offset)
                yield member.name, member.offset, file.read(member.size)
        except ValueError as error:
            raise OSError(str(error)) from error


def refuse_more(file: BinaryIO, place: str) -> None:
    """ValueError if anything but zeros follows the end of the archive."""
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise ValueError(
                f"{place}: more follows the end of the archive (archives joined by cat, or "
                "damage); name the parts as files of their own"
            )


def parse_header(header: bytes, place: str) -> tuple[bytes, ...]:
    """The fields of a header whose checksum is right."""
    fields: tuple[bytes, ...] = HEADER.unpack(header)
    checksum = fields[6]
    # Its own field counts as spaces; some old tars summed signed bytes (tar(5)).
    total = sum(header) - sum(checksum) + 8 * ord(" ")
    high = sum(byte > 127 for byte in header) - sum(byte > 127 for byte in checksum)
    if parse_number(checksum, header, place) not in (total, total - 256 * high):
        raise describe_damage(header, place)
    return fields


def describe_damage(header: bytes, place: str) -> ValueError:
    """What to say of a header that is none."""
    for magic, name in COMPRESSED.items():
        if place.endswith("byte 0") and header.startswith(magic):
            return ValueError(f"{place}: a {name} file, no plain tar; decompress it first")
    return ValueError(f"{place}: no tar header, the archive is damaged here; {AGAIN}")


def parse_number(field: bytes, header: bytes, place: str) -> int:
    """An octal number, or GNU's binary one for sizes of 8 GiB and more."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise describe_damage(header, place) from None


def parse_pax(content: bytes, place: str, name: str | None) -> tuple[str | None, int | None]:
    """Name and size of the next entry, where a pax header gives them: "LENGTH KEY=VALUE\\n"…"""
    size = None
    while content:
        digits, _, rest = content.partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(content):
            raise ValueError(f"{place}: a damaged pax header; {AGAIN}")
        key, _, value = rest[: int(digits) - len(digits) - 2].partition(b"=")
        if key == b"path":
            name = decode_name(value)
        elif key == b"size" and value.isdigit():
            size = int(value)
        content = content[int(digits) :]
    return name, size


def header_name(fields: tuple[bytes, ...]) -> str:
    """The name in a header; POSIX puts the front of a long one into another field."""
    prefix = decode_name(fields[15]) if fields[9] == b"ustar\0" else ""
    name = decode_name(fields[0])
    return f"{prefix}/{name}" if prefix else name


def decode_name(field: bytes) -> str:
    """Text up to the first zero byte."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
