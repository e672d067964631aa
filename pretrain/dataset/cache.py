"""A node's own copies of shards that lie far away: bounded, checked, shared by the node's ranks."""

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pretrain.base.checks import check_positive
from pretrain.base.files import aside, final_name, remove_left
from pretrain.base.lock import locked
from pretrain.dataset.manifest import COPY_AGAIN, ShardInfo
from pretrain.dataset.remote import copy_checked

# A shard that is read says so this often: what was not used for longest is removed first.
_USED_EVERY_S = 60.0
_COPY = re.compile(r"[0-9a-f]{32}\.tar")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOKED_EVERY_S = 0.1  # whether a shard under way is still wanted
_LOCKS = 64  # files; two shards that share one wait for each other


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Where the shard files are read, if not in data.train itself"""

    url: str | None = None
    """Where they lie, as the dataset directory's address for fsspec (s3://, gs://, https://, hf://);
    data.train then holds the small files, which `python -m data_prep fetch` brings. Needs
    data.shards.cache."""
    cache: Path | None = None
    """Folder on the node's own disk to which a shard is copied when it is first needed, shared by
    all ranks and runs on the node. Null reads shards where they are."""
    cache_gib: float = 200.0
    """The copies' size beyond which those that were not used for longest are removed. A node wants
    room for its part of a shuffle window."""
    timeout_s: float = 300.0
    """How long one shard may take to arrive, before it is tried again."""

    def __post_init__(self) -> None:
        check_positive(
            {
                "data.shards.cache_gib": self.cache_gib,
                "data.shards.timeout_s": self.timeout_s,
            }
        )
        if self.url is not None and self.cache is None:
            raise ValueError(
                f"data.shards.url={self.url} needs a folder on the node's own disk: add "
                "data.shards.cache"
            )


class ShardCache:
    """The copies of one tier's shards, named by their sha256. Thread-safe, and between processes.

    A copy has its name when it is whole and its sha256 is the manifest's. Of several that want it
    at once one fetches, and the others wait.
    """

    def __init__(
        self, folder: Path, options: ShardOptions, source: str, shards: Sequence[ShardInfo]
    ) -> None:
        """source: the dataset directory, or its URL."""
        self._folder, self._options, self._shards = folder, options, shards
        self._source = source.rstrip("/")
        self._limit = int(options.cache_gib * 2**30)
        for shard in shards:
            if not _DIGEST.fullmatch(shard.sha256) or not _is_inside(shard.file):
                raise ValueError(
                    f"the manifest names a shard {shard.file!r} of sha256 {shard.sha256!r}: "
                    f"{COPY_AGAIN}"
                )
        largest = max(shard.bytes for shard in shards)
        if self._limit < 2 * largest:
            raise ValueError(
                f"data.shards.cache_gib={options.cache_gib:g} has no room for two shards of "
                f"{largest / 2**30:.3g} GiB: raise it"
            )
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"data.shards.cache={folder} cannot be made ({error.strerror}): choose a folder on "
                "a disk of this node that this user can write"
            ) from error
        self._used = [0.0] * len(shards)

    def path(self, shard: int) -> Path:
        """Where a shard's copy lies, or will."""
        return self._folder / f"{self._shards[shard].sha256[:32]}.tar"

    def use(self, shard: int) -> None:
        """Note that a shard is read."""
        now = time.monotonic()
        if now - self._used[shard] > _USED_EVERY_S:
            self._used[shard] = now
            with suppress(FileNotFoundError):
                os.utime(self.path(shard))

    @property
    def limit_bytes(self) -> int:
        """Size beyond which copies are removed."""
        return self._limit

    def bring(self, shard: int, given_up: threading.Event | None = None) -> None:
        """Make sure that a shard's copy is there; OSError names the source and what went wrong.

        given_up: set where nobody wants it any more; then it ends soon, by an OSError too.
        """
        given_up = given_up or threading.Event()
        target, info = self.path(shard), self._shards[shard]
        with self._locked(f"{int(info.sha256[:4], 16) % _LOCKS}"):
            if target.exists():
                return  # brought by another, meanwhile
            source = f"{self._source}/{info.file}"
            try:
                with self._begun(target, info.bytes) as part:
                    _within(
                        self._options.timeout_s,
                        given_up,
                        lambda over: copy_checked(
                            source, part, info.sha256, size=info.bytes, given_up=over.is_set
                        ),
                    )
            except OSError as error:
                raise OSError(f"{source} could not be copied to {target}: {error}") from error

    @contextmanager
    def _begun(self, target: Path, size: int) -> Iterator[Path]:
        """A new file of `size` bytes, for which what was not used for longest has made room, and
        which becomes `target`."""
        with ExitStack() as stack:
            with self._locked("room"):
                self._make_room(size)
                file = stack.enter_context(aside(target))
                try:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        raise OSError(
                            f"no room for {size:,} bytes in {self._folder}: lower data.shards."
                            f"cache_gib={self._options.cache_gib:g}, or make room"
                        ) from error
                    raise
            yield Path(file.name)

    def _make_room(self, size: int) -> None:
        """Remove what killed processes left, and copies, until `size` bytes more are allowed."""
        remove_left(self._folder)
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if _COPY.fullmatch(final_name(path.name)):  # nothing else here is ours
                    found = path.stat()
                    files.append((found.st_mtime, found.st_size, path))
        total = size + sum(its for _, its, _ in files)
        for _, its, path in sorted(files):
            if total <= self._limit:
                break
            if _COPY.fullmatch(path.name):  # readers that have it open keep what they read
                path.unlink(missing_ok=True)
                total -= its

    def _locked(self, name: str) -> AbstractContextManager[int]:
        return locked(self._folder / "locks" / name)


def _is_inside(name: str) -> bool:
    """Whether a shard's name leads nowhere but into the dataset, as a path and as an address."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


def _within(
    timeout_s: float, given_up: threading.Event, action: Callable[[threading.Event], None]
) -> None:
    """Do it in a thread that may be left behind: a read over the network can hang for ever.

    TimeoutError where it takes longer, InterruptedError where it is given up; else its own OSError.
    """
    over = threading.Event()
    failures: list[OSError] = []

    def act() -> None:
        try:
            action(over)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=act, name="shard", daemon=True)
    thread.start()
    end = time.monotonic() + timeout_s
    while thread.is_alive() and not given_up.is_set() and time.monotonic() < end:
        thread.join(_LOOKED_EVERY_S)
    if thread.is_alive():
        over.set()
        if given_up.is_set():
            raise InterruptedError("nobody wants it any more")
        raise TimeoutError(f"nothing whole after data.shards.timeout_s={timeout_s:g}")
    if failures:
        raise failures[0]
