"""Files of a source that lie far away: brought whole when they are read, or read in parts."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pretrain.dataset.far_files import FarFile, FarFileError, FarFiles, open_far

T = TypeVar("T")
R = TypeVar("R")
_ATTEMPTS = 3  # at a file; its file system itself tries each request several times
_WAIT_S = 2.0  # after the first failure, then twice as long
_GLANCE_BYTES = 1 << 20  # asked for at once where a part of a file is read
_REQUESTS = 16  # at once
_LASTING = (FileNotFoundError, PermissionError, ImportError, ValueError)
_CREDENTIALS = (
    "give credentials as its file system takes them (S3: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, ~/.aws or a role, and AWS_ENDPOINT_URL for a store of another maker; "
    "GCS: GOOGLE_APPLICATION_CREDENTIALS)"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store or server, and what its errors mean."""

    def is_passing(self, error: Exception) -> bool:
        """Whether the same request may succeed a moment later."""
        reason = reason_of(error)
        status = getattr(reason, "status", None)
        if isinstance(status, int):
            return status == 429 or status >= 500
        return not isinstance(reason, _LASTING) and "Credential" not in type(reason).__name__

    def describe(self, error: Exception) -> str:
        """What happened, and what to do about it."""
        reason = reason_of(error)
        told = " ".join(f"{type(reason).__name__}: {reason}".split())
        if isinstance(reason, ImportError):
            return f"{told}; pip install -r requirements-stores.txt"
        if isinstance(reason, PermissionError) or "Credential" in type(reason).__name__:
            return f"access is refused ({told}); {_CREDENTIALS}"
        if isinstance(reason, FileNotFoundError):
            return f"there is no such file ({told}); change --source"
        return f"{told}; give the same command again to go on"

    def persistently(self, request: Callable[[], T]) -> T:
        """What a request gives, tried several times where it may succeed later."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return request()
            except Exception as error:
                if not self.is_passing(error):
                    raise
            time.sleep(_WAIT_S * 2**attempt)
        return request()

    @contextmanager
    def asking(self, address: str) -> Iterator[None]:
        """ValueError says on one line what the store, or the way there, has against a request."""
        try:
            yield
        except ValueError as error:
            if str(error).startswith("source="):
                raise
            raise ValueError(f"source={address}: {error}; change --source") from error
        except Exception as error:  # every file system has its own
            raise ValueError(f"source={address}: {self.describe(error)}") from error


def reason_of(error: BaseException) -> BaseException:
    """What an error came from, where that says more."""
    return error.__cause__ if isinstance(error, FarFileError) and error.__cause__ else error


@dataclass(frozen=True, kw_only=True)
class BroughtFiles:
    """Some far files, in the order of their paths there."""

    found: dict[Path, FarFile]
    copies: FarFiles
    place: Place = field(default_factory=Place)
    listed: Callable[[], str]  # sums up what is there now
    origin: dict[str, Any] = field(default_factory=dict)  # for the manifest
    left_alone: Counter[str] = field(default_factory=Counter)  # suffix -> files that are not read

    @property
    def paths(self) -> list[Path]:
        return list(self.found)

    def size(self, path: Path) -> int:
        """Bytes of one of the files."""
        return self.found[path].bytes

    def state(self) -> str:
        """Another after any of the files changed."""
        return self.listed()

    def read(self, path: Path, opening: Callable[[Path], T]) -> T:
        """What `opening` makes of a file that is brought, at most once, if it is not there.
        ValueError says why it could not be."""
        far = self.found[path]
        try:
            return self.place.persistently(lambda: self.copies.read(far, opening))
        except FarFileError as error:
            raise ValueError(f"source={far.address}: {self.place.describe(error)}") from error

    def glance(self, path: Path, opening: Callable[[Path | RawIOBase], T]) -> T:
        """The same without bringing the file: parts of it are read from afar."""
        far = self.found[path]
        with suppress(FileNotFoundError):  # another process made room
            if self.copies.is_whole(far):
                return opening(self.copies.path(far))
        return opening(_PartsOfFile(far, self.place))


class _PartsOfFile(RawIOBase):
    """A far file, of which the parts are read that are asked for.

    To be read in the thread that opened it: pyarrow's own threads would outlive an error.
    """

    def __init__(self, far: FarFile, place: Place) -> None:
        super().__init__()
        self.name, self._place = far.address, place
        with place.asking(self.name):
            self.file = place.persistently(lambda: open_far(far.address, far.bytes, _GLANCE_BYTES))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        place: int = self.file.tell()
        return place

    def seek(self, offset: int, whence: int = 0) -> int:
        place: int = self.file.seek(offset, whence)
        return place

    def readinto(self, buffer: Any) -> int:
        """As RawIOBase. ValueError says why it is not sent."""
        place = self.file.tell()

        def part() -> bytes:
            self.file.seek(place)
            data: bytes = self.file.read(min(len(buffer), self.file.size - place))
            return data

        if place >= self.file.size:
            return 0
        with self._place.asking(self.name):
            data = self._place.persistently(part)
        buffer[: len(data)] = data
        return len(data)


def at_once(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) of each, in order, some at once: what waits for a disk or a store, not for the
    processor. Few results are held."""
    left = iter(items)
    with ThreadPoolExecutor(_REQUESTS) as threads:
        running = [threads.submit(function, item) for item in islice(left, 2 * _REQUESTS)]
        while running:
            first = running.pop(0)
            running += [threads.submit(function, item) for item in islice(left, 1)]
            yield first.result()
