"""Files that lie far away, by any address that fsspec knows: read, copied, or kept on this node.

One cache serves them all: bounded, checked, shared by the node's processes.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pretrain.base.files import aside, final_name, remove_left
from pretrain.base.lock import HeldError, locked

T = TypeVar("T")
_BLOCK_BYTES = 4 << 20
_USED_EVERY_S = 60.0  # a file that is read says so this often: what is longest unused goes first
_SUFFIX = re.compile(r"\.\w{1,16}")
_COPY = re.compile(rf"[0-9a-f]{{32}}({_SUFFIX.pattern})?")
_LOOKED_EVERY_S = 0.1  # whether a file under way still comes, and is still wanted
_PATIENCE_S = 0.5  # at a time, with another that fetches
_LOCKS = 64  # folders; two files that share one wait for each other


class OtherFileError(OSError):
    """What came is whole, and another file than belongs there."""


class FarFileError(OSError):
    """A far file cannot be had; the cause says what its file system, or the disk here, said."""


@dataclass(frozen=True, kw_only=True)
class FarFile:
    """What is known of a file before it is read."""

    address: str  # for fsspec
    bytes: int
    sha256: str | None  # None where nobody tells it: what is known besides stands for it
    version: str | None = None  # of what lies at the address, where its store tells it


class FarFiles:
    """Copies of far files in a folder on the node's own disk. Thread-safe, and between processes.

    A copy has its name when it is whole: of the file's size, and of its sha256 where that is known.
    Of several that want a file at once one fetches it, and the others wait.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int | None,
        *,
        timeout_s: float,
        options: tuple[str, str, str],
    ) -> None:
        """limit_bytes: size beyond which copies go, None: never. timeout_s: how long nothing may
        come of a file. options: what sets the folder, the limit and the timeout, for messages."""
        self.limit_bytes = limit_bytes
        self._folder, self._timeout_s = folder, timeout_s
        self._folder_option, self._limit_option, self._timeout_option = options
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"{self._folder_option}={folder} cannot be made ({error.strerror}): choose a "
                "folder on a disk of this node that this user can write"
            ) from error
        self._used: dict[FarFile, float] = {}

    def path(self, file: FarFile) -> Path:
        """Where a file's copy lies, or will."""
        digest = file.sha256
        if digest is None:
            told = f"{file.address} {file.bytes} {file.version}"
            digest = hashlib.sha256(told.encode()).hexdigest()
        suffix = PurePosixPath(urlsplit(file.address).path).suffix
        return self._folder / (digest[:32] + (suffix if _SUFFIX.fullmatch(suffix) else ""))

    def use(self, file: FarFile) -> None:
        """Note that a file is read."""
        now = time.monotonic()
        if now - self._used.get(file, -_USED_EVERY_S) >= _USED_EVERY_S:
            self._used[file] = now
            with suppress(FileNotFoundError):
                os.utime(self.path(file))

    def bring(self, file: FarFile, given_up: threading.Event | None = None) -> None:
        """Make sure that a file's copy is there. As `read`."""
        self.read(file, lambda _: None, given_up)

    def read(
        self,
        file: FarFile,
        opening: Callable[[Path], T],
        given_up: threading.Event | None = None,
    ) -> T:
        """What `opening` makes of the copy, which is fetched if it is not there.

        The copy may go once `opening` has returned: what it returns holds it open, or has read what
        it wants. FarFileError names the address and what went wrong. given_up: set where nobody
        wants it any more; then it ends soon, by a FarFileError too.
        """
        self.use(file)
        target = self.path(file)
        with suppress(FileNotFoundError):  # another process made room
            if self.is_whole(file):
                return opening(target)
        given_up = given_up or threading.Event()
        with self._alone_with(file, given_up):
            with suppress(FileNotFoundError):
                if self.is_whole(file):
                    return opening(target)
            # Opened before it has the name under which others remove it.
            with self._begun(file) as part:
                self._fetch(file, part, given_up)
                return opening(part)

    @contextmanager
    def _alone_with(self, file: FarFile, given_up: threading.Event) -> Iterator[None]:
        """Nobody else fetches the file meanwhile. FarFileError where it is given up."""
        folder = self._folder / "locks" / str(int(self.path(file).name[:4], 16) % _LOCKS)
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(folder, patience_s=_PATIENCE_S))
                    break
                except HeldError as error:
                    if given_up.is_set():
                        raise FarFileError(f"{file.address}: no longer needed") from error
            yield

    def is_whole(self, file: FarFile) -> bool:
        """Whether a file's copy is there, whole. FileNotFoundError if nothing is."""
        return self.path(file).stat().st_size == file.bytes

    def _fetch(self, file: FarFile, part: Path, given_up: threading.Event) -> None:
        """In a thread that may be left behind: a read over the network can hang for ever."""
        over, came = threading.Event(), [0]
        ends: list[BaseException | None] = []  # None: it is whole, and the file that it should be

        def act() -> None:
            try:
                copy(file.address, part, size=file.bytes, sha256=file.sha256, came=came, over=over)
                ends.append(None)
            except BaseException as error:  # a file system's own too: none may pass for a success
                ends.append(error)

        thread = threading.Thread(target=act, name="far file", daemon=True)
        thread.start()
        bytes_seen, since = 0, time.monotonic()
        while thread.is_alive() and not given_up.is_set():
            thread.join(_LOOKED_EVERY_S)
            if came[0] > bytes_seen:
                bytes_seen, since = came[0], time.monotonic()
            elif time.monotonic() > since + self._timeout_s:
                break
        if thread.is_alive():
            over.set()
            why = f"nothing came for {self._timeout_option}={self._timeout_s:g}"
            if given_up.is_set():
                why = "no longer needed"
            raise FarFileError(f"{file.address} could not be copied to {part.parent}: {why}")
        if ends[0] is not None:
            raise FarFileError(
                f"{file.address} could not be copied to {part.parent}: {ends[0]}"
            ) from (ends[0].__cause__ or ends[0])

    @contextmanager
    def _begun(self, file: FarFile) -> Iterator[Path]:
        """A new file of the far file's size, for which what was not used for longest has made room,
        and which becomes its copy."""
        with ExitStack() as stack:
            with locked(self._folder / "locks" / "room"):
                self._make_room(file.bytes)
                part = stack.enter_context(aside(self.path(file)))
                try:
                    if hasattr(os, "posix_fallocate") and file.bytes:
                        os.posix_fallocate(part.fileno(), 0, file.bytes)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    limit = "null" if self.limit_bytes is None else self.limit_bytes / 2**30
                    raise FarFileError(
                        f"{file.address}: no room for {file.bytes:,} bytes in {self._folder}: "
                        f"lower {self._limit_option}={limit}, make room, or change "
                        f"{self._folder_option}"
                    ) from error
            yield Path(part.name)

    def _make_room(self, size: int) -> None:
        """Remove what killed processes left, and copies, until `size` bytes more are allowed.
        Readers that have one open keep what they read."""
        remove_left(self._folder)
        if self.limit_bytes is None:
            return
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if _COPY.fullmatch(final_name(path.name)):  # nothing else here is ours
                    found = path.stat()
                    files.append((found.st_mtime, found.st_size, path))
        total = size + sum(its for _, its, _ in files)
        for _, its, path in sorted(files):
            if total <= self.limit_bytes:
                break
            if _COPY.fullmatch(path.name):
                path.unlink(missing_ok=True)
                total -= its


def read_all(address: str) -> bytes:
    """A small file; FarFileError says why it cannot be read."""
    with open_far(address) as file:
        content: bytes = _one_error(file.read)
    return content


def copy(
    address: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    came: list[int] | None = None,
    over: threading.Event | None = None,
) -> None:
    """Copy a far file over the beginning of `target`, which is there; OSError where that fails or
    another file comes. Ends early, without a word, when it is `over`.

    came: its one item is the number of bytes so far, for who watches."""
    digest, came = hashlib.sha256(), [0] if came is None else came
    with open_far(address, size) as theirs, target.open("r+b") as ours:
        while block := _one_error(partial(theirs.read, _BLOCK_BYTES)):
            if over is not None and over.is_set():
                return
            digest.update(block)
            ours.write(block)
            came[0] += len(block)
        if over is not None and over.is_set():
            return
        ours.truncate()
        ours.flush()
        os.fsync(ours.fileno())  # its name, which comes next, must not outlive a power cut alone
    if size is not None and came[0] != size:
        raise OSError(f"{came[0]:,} of {size:,} bytes came")
    if sha256 is not None and digest.hexdigest() != sha256:
        raise OtherFileError(
            f"{came[0]:,} bytes with sha256 {digest.hexdigest()[:12]}… came, the one that belongs "
            f"there has {sha256[:12]}…"
        )


def open_far(address: str, size: int | None = None, part_bytes: int = 0) -> Any:
    """A far file as its file system opens it: to be read from its beginning on, or in parts of
    `part_bytes`. FarFileError.

    size: its bytes, where they are known: they are not asked for first then."""
    import fsspec  # most commands read nothing from afar

    def begin() -> Any:
        system, path = fsspec.url_to_fs(address)
        # A plain web server answers no request for a part of a file.
        streams = {"http", "https", "hf"} & {*_words(system.protocol)}
        how = {"block_size": part_bytes, "size": size} if part_bytes or streams else {}
        return system.open(path, "rb", **how)

    return _one_error(begin)


def _words(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else protocol


def _one_error(request: Callable[[], T]) -> T:
    """Every file system has failures of its own: all become a FarFileError."""
    try:
        return request()
    except Exception as error:
        reason = error.__cause__ or error
        raise FarFileError(f"{type(reason).__name__}: {reason}") from error
