"""The files of a source, wherever they lie: on this machine, or brought when they are read."""

import hashlib
from collections.abc import Callable, Iterable
from io import RawIOBase
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Files(Protocol):
    """Files in a fixed order, by the paths that tell people which they are."""

    @property
    def paths(self) -> list[Path]:
        """All of them."""

    def size(self, path: Path) -> int:
        """Bytes of one of the files."""

    def state(self) -> str:
        """Another after any of the files changed."""

    def read(self, path: Path, opening: Callable[[Path], T]) -> T:
        """What `opening` makes of a file on this machine, where it is whole at that moment.

        It may be gone once `opening` has returned: what it returns holds the file open, or has
        read what it wants.
        """

    def glance(self, path: Path, opening: Callable[[Path | RawIOBase], T]) -> T:
        """The same where a small part of the file is wanted, which may be read from afar."""


class LocalFiles:
    """Files on this machine."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def size(self, path: Path) -> int:
        """Bytes of one of the files."""
        return path.stat().st_size

    def state(self) -> str:
        """Another after any of the files changed, by sizes and times."""
        return state_of(self.paths)

    def read(self, path: Path, opening: Callable[[Path], T]) -> T:
        """What `opening` makes of a file."""
        return opening(path)

    def glance(self, path: Path, opening: Callable[[Path | RawIOBase], T]) -> T:
        """What `opening` makes of a file."""
        return opening(path)


def describe_files(files: Files) -> list[dict[str, Any]]:
    """Names and sizes, for a manifest."""
    return [{"name": path.name, "bytes": files.size(path)} for path in files.paths]


def state_of(paths: Iterable[Path]) -> str:
    """sha256 over the names, sizes and times of files; another after any of them changed."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.name!a} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
