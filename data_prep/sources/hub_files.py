"""Files of a dataset on a hub at one commit, each brought when it is read into a bounded folder."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

from data_prep.sources.hub_address import HubAddress, asking, is_passing
from pretrain.base.files import file_sha256, rename_durably, sync

T = TypeVar("T")
ATTEMPTS = 3  # at a file; huggingface_hub itself tries each request several times
WAIT_S = 2.0  # after the first failure, then twice as long
ARRIVING = ".arriving"  # what is not whole, or not checked
GLANCE_BYTES = 1 << 20  # asked for at once where a part of a file is read


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """What the hub says of a file."""

    bytes: int
    sha256: str | None  # None where it is small enough to lie in git itself


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Some files of a dataset, in the order of their paths there."""

    address: HubAddress  # its revision is the commit
    found: dict[Path, HubFile]
    folder: Path  # for this dataset's files at this commit
    cache: Path  # for all
    cache_bytes: int | None  # beyond which files go; None: all stay
    origin: dict[str, Any] = field(default_factory=dict)  # for the manifest
    left_alone: Counter[str] = field(default_factory=Counter)  # suffix -> files that are not read

    @property
    def paths(self) -> list[Path]:
        return list(self.found)

    def size(self, path: Path) -> int:
        """Bytes of one of the files."""
        return self.found[path].bytes

    def read(self, path: Path, opening: Callable[[Path], T]) -> T:
        """What `opening` makes of a file that is brought, at most once, if it is not there.
        ValueError says why it could not be."""
        from huggingface_hub.utils import WeakFileLock

        local = self.folder / path
        with suppress(FileNotFoundError):  # another process made room
            if self.is_whole(path):
                return opening(local)
        lock = self.folder / ARRIVING / "locks" / path.with_name(path.name + ".lock")
        with ExitStack() as held:
            with asking(f"{self.address}/{path}"):
                lock.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(WeakFileLock(lock))  # neighbouring tasks begin with one file
            with suppress(FileNotFoundError):
                if self.is_whole(path):
                    return opening(local)
            with asking(f"{self.address}/{path}"):
                arrived = persistently(lambda: self.download(path))
            opened = opening(arrived)  # before it has the name under which others remove it
            with asking(f"{self.address}/{path}"):
                self.keep(arrived, local, self.size(path))
            return opened

    def glance(self, path: Path, opening: Callable[[Path | RawIOBase], T]) -> T:
        """The same without bringing the file: parts of it are read from the hub."""
        with suppress(FileNotFoundError):  # another process made room
            if self.is_whole(path):
                return opening(self.folder / path)
        return opening(FarFile(self.address, path, self.found[path].bytes))

    def is_whole(self, path: Path) -> bool:
        """Whether all of a file lies on this machine. FileNotFoundError if nothing does."""
        return (self.folder / path).stat().st_size == self.found[path].bytes

    def keep(self, arrived: Path, local: Path, size: int) -> None:
        """Give a file that was checked its name, for other readers too, and make room for it."""
        local.parent.mkdir(parents=True, exist_ok=True)
        sync(arrived)
        rename_durably(arrived, local)
        if self.cache_bytes is not None:
            make_room(self.cache, self.cache_bytes - size, local)

    def download(self, path: Path) -> Path:
        """A file as the hub describes it, in the folder of those that arrive; OSError if not."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # one line tells of the build's progress
        arrived = Path(
            hf_hub_download(
                self.address.dataset,
                path.as_posix(),
                repo_type="dataset",
                revision=self.address.revision,
                local_dir=self.folder / ARRIVING,
            )
        )
        wanted = self.found[path]
        size, digest = arrived.stat().st_size, wanted.sha256
        if size != wanted.bytes or (digest is not None and file_sha256(arrived) != digest):
            arrived.unlink()
            raise OSError(f"{size:,} bytes came that are not the file of {wanted.bytes:,} bytes")
        return arrived


def persistently(request: Callable[[], T]) -> T:
    """What a request gives, tried several times where it may succeed later."""
    import huggingface_hub.errors as hub

    for attempt in range(ATTEMPTS - 1):
        try:
            return request()
        except (hub.HTTPError, OSError) as error:
            if not is_passing(error):
                raise
        time.sleep(WAIT_S * 2**attempt)
    return request()


def make_room(cache: Path, bytes_cap: int, latest: Path) -> None:
    """Remove whole files, those first that came first, until all but `latest`, which stays, take no
    more than the cap. Who reads a removed file has it open."""
    held: list[tuple[float, int, Path]] = []
    for path in cache.rglob("*"):
        try:
            if path.is_file() and ARRIVING not in path.parts and path != latest:
                told = path.stat()
                held.append((told.st_mtime, told.st_size, path))
        except FileNotFoundError:
            continue  # another process made room
    excess = sum(size for _, size, _ in held) - bytes_cap
    for _, size, path in sorted(held):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


class FarFile(RawIOBase):
    """A file on the hub, of which the parts are read that are asked for.

    To be read in the thread that opened it: pyarrow's own threads would outlive an error.
    """

    def __init__(self, address: HubAddress, path: Path, size: int) -> None:
        super().__init__()
        self.name = f"{address}/{path}"
        with asking(self.name):
            self.file = persistently(lambda: self.open_at(address, path, size))

    def open_at(self, address: HubAddress, path: Path, size: int) -> Any:
        """The file as huggingface_hub opens it."""
        from huggingface_hub import HfFileSystem

        name = f"datasets/{address.dataset}/{path.as_posix()}"
        return HfFileSystem().open(
            name, "rb", revision=address.revision, size=size, block_size=GLANCE_BYTES
        )

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
