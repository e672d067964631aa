"""Files of a dataset on a hub at one commit: brought whole when they are read, or read in parts."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

from data_prep.sources.hub_address import HubAddress, asking, describe, is_passing
from pretrain.dataset.far_files import FarFile, FarFileError, FarFiles, open_far

T = TypeVar("T")
_ATTEMPTS = 3  # at a file; huggingface_hub itself tries each request several times
_WAIT_S = 2.0  # after the first failure, then twice as long
_GLANCE_BYTES = 1 << 20  # asked for at once where a part of a file is read


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Some files of a dataset, in the order of their paths there."""

    address: HubAddress  # its revision is the commit
    found: dict[Path, FarFile]
    copies: FarFiles
    origin: dict[str, Any] = field(default_factory=dict)  # for the manifest
    left_alone: Counter[str] = field(default_factory=Counter)  # suffix -> files that are not read

    @property
    def paths(self) -> list[Path]:
        return list(self.found)

    def size(self, path: Path) -> int:
        """Bytes of one of the files."""
        return self.found[path].bytes

    def state(self) -> str:
        """The commit: what lies there does not change."""
        return self.address.revision

    def read(self, path: Path, opening: Callable[[Path], T]) -> T:
        """What `opening` makes of a file that is brought, at most once, if it is not there.
        ValueError says why it could not be."""
        far = self.found[path]
        try:
            return persistently(lambda: self.copies.read(far, opening))
        except FarFileError as error:
            raise ValueError(f"source={far.address}: {describe(error)}") from error

    def glance(self, path: Path, opening: Callable[[Path | RawIOBase], T]) -> T:
        """The same without bringing the file: parts of it are read from the hub."""
        far = self.found[path]
        with suppress(FileNotFoundError):  # another process made room
            if self.copies.is_whole(far):
                return opening(self.copies.path(far))
        return opening(_PartsOfFile(far))


def persistently(request: Callable[[], T]) -> T:
    """What a request gives, tried several times where it may succeed later."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return request()
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(_WAIT_S * 2**attempt)
    return request()


class _PartsOfFile(RawIOBase):
    """A file on the hub, of which the parts are read that are asked for.

    To be read in the thread that opened it: pyarrow's own threads would outlive an error.
    """

    def __init__(self, far: FarFile) -> None:
        super().__init__()
        self.name = far.address
        with asking(self.name):
            self.file = persistently(lambda: open_far(far.address, far.bytes, _GLANCE_BYTES))

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
        """As RawIOBase. ValueError says why the hub does not send it."""
        place = self.file.tell()

        def part() -> bytes:
            self.file.seek(place)
            data: bytes = self.file.read(min(len(buffer), self.file.size - place))
            return data

        if place >= self.file.size:
            return 0
        with asking(self.name):
            data = persistently(part)
        buffer[: len(data)] = data
        return len(data)
