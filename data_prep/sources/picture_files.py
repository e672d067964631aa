"""Reading pictures out of files: never more than a bound, never outside a root."""

import os
import stat
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from data_prep.rejection import RejectedError

# No picture of 64 MP, the most that is decoded, is as large in any common format.
_PICTURE_BYTES_CAP = 1 << 28


class PictureRoot:
    """Pictures by their paths, relative to a folder and inside it. Links are followed inside."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118

    def read(self, path: str | bytes | None) -> bytes:
        """One picture. RejectedError if there is none, or the path leads out of the root."""
        if not path:
            raise RejectedError("image_missing")
        try:
            # Absolute paths replace the root, `..` and links leave it: where it ends decides.
            real = os.path.realpath(os.path.join(self.root, os.fsdecode(path)))  # noqa: PTH118
            if not real.startswith(self.inside):
                raise RejectedError("image_outside_root")
            kind = os.stat(real).st_mode  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # or a zero byte
            raise RejectedError("image_missing") from error
        except OSError as error:
            if error.strerror == os.strerror(36):  # ENAMETOOLONG: no such file, too
                raise RejectedError("image_missing") from error
            raise
        if not stat.S_ISREG(kind):  # a pipe would wait for ever
            raise RejectedError("image_missing")
        return read_bounded(real)

    def holds(self, path: str | bytes | None) -> bool:
        """Whether a picture can be read at this path, without reading it."""
        if not path:
            return False
        try:
            real = os.path.realpath(os.path.join(self.root, os.fsdecode(path)))  # noqa: PTH118
            return real.startswith(self.inside) and os.path.isfile(real)  # noqa: PTH113
        except ValueError:
            return False


def read_bounded(path: str | Path) -> bytes:
    """A whole file. RejectedError (image_too_large) beyond PICTURE_BYTES_CAP."""
    with Path(path).open("rb", buffering=0) as file:
        data = _read_some(file, _PICTURE_BYTES_CAP + 1)
    if len(data) > _PICTURE_BYTES_CAP:
        raise RejectedError("image_too_large")
    return data


def read_range(path: Path, file: BinaryIO, offset: int, size: int) -> bytes:
    """A range of an open file. RejectedError (image_too_large) beyond PICTURE_BYTES_CAP.

    OSError if the range ends early: that is the storage's fault, not the picture's.
    """
    if size > _PICTURE_BYTES_CAP:
        raise RejectedError("image_too_large")
    file.seek(offset)
    data = _read_some(file, size)
    if len(data) < size:
        end = offset + len(data)
        raise OSError(f"{path} ends at byte {end}, before {offset + size}: it has changed")
    return data


def _read_some(file: BinaryIO | FileIO, wanted: int) -> bytes:
    """So many bytes from where the file stands, or all that are left."""
    parts: list[bytes] = []
    got = 0
    while got < wanted and (part := file.read(min(wanted - got, 1 << 24))):
        parts.append(part)
        got += len(part)
    return b"".join(parts)
