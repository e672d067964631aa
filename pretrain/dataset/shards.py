"""Where a tier's shard files lie, and reading pieces of them: few files are open at once, and an
I/O error is never bad data."""

import errno
import os
import re
import resource
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from pretrain.base import progress
from pretrain.base.checks import check_local, check_positive
from pretrain.dataset.far_files import FarFile, FarFiles
from pretrain.dataset.manifest import COPY_AGAIN, Manifest, path_inside

_DIGEST = re.compile(r"[0-9a-f]{64}")
# A shuffle window touches some hundred shards at once; more open files would save no more opens.
_MOST_OPEN = 256
# Of the process's limit (1,024 is usual), what shards may take: sockets, logs, checkpoints and
# the libraries' own files need the rest.
_SHARE_OF_LIMIT = 4
# Seconds before each further try. A server's hiccup or a stale NFS handle is over within seconds;
# what lasts longer is an outage, and then a stopped run that resumes is better than a hanging one.
_RETRY_AFTER_S = (0.25, 1.0, 3.0)


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
    room for its part of a shuffle window, of the tier and of the one that holds the texts."""
    timeout_s: float = 300.0
    """How long nothing may come of a shard that is copied, before it is tried again."""

    def __post_init__(self) -> None:
        check_local({self.option("cache"): self.cache})
        check_positive(
            {self.option("cache_gib"): self.cache_gib, self.option("timeout_s"): self.timeout_s}
        )
        if self.url is not None and self.cache is None:
            raise ValueError(
                f"{self.option('url')}={self.url} needs a folder on the node's own disk: add "
                f"{self.option('cache')}"
            )

    @staticmethod
    def option(name: str) -> str:
        """How the user gives it."""
        return f"data.shards.{name}"


class ShardCopies:
    """Shards of some tiers on the node's own disk, each copied when it is first needed."""

    def __init__(self, copies: FarFiles, files: dict[str, list[FarFile]], limit_bytes: int) -> None:
        """files: of each tier."""
        self._copies = copies
        self._files = {str(copies.path(one)): one for some in files.values() for one in some}
        # Where a tier's shards lie, or will.
        self.paths = {tier: [str(copies.path(one)) for one in some] for tier, some in files.items()}
        self.limit_bytes = limit_bytes

    def use(self, path: str) -> None:
        """Note that a shard is read."""
        self._copies.use(self._files[path])

    def bring(self, path: str, given_up: threading.Event | None = None) -> None:
        """Make sure that a shard's copy is there, or, where it is given up, end soon. OSError."""
        self._copies.bring(self._files[path], given_up)


def open_copies(
    options: ShardOptions, directory: Path, manifest: Manifest, tier: str
) -> ShardCopies | None:
    """Of the tier and of the text tier. None without a cache. ValueError where shards cannot be
    copied."""
    if options.cache is None:
        return None
    if manifest.tiers[tier].in_place:
        raise ValueError(
            f"{options.option('cache')}={options.cache} asked for, tier {tier} of {directory} "
            "has its pictures in place, in tars that nothing can check whole: leave it out, or "
            "copy the tars by hand and name their folder in pictures_root.txt"
        )
    source = (options.url or str(directory)).rstrip("/")
    shards = {name: manifest.tiers[name].shards for name in (tier, manifest.text_tier)}
    for shard in chain(*shards.values()):
        if not _DIGEST.fullmatch(shard.sha256) or not _is_inside(shard.file):
            raise ValueError(
                f"the manifest names a shard {shard.file!r} of sha256 {shard.sha256!r}: "
                f"{COPY_AGAIN}"
            )
    digests = {shard.sha256 for shard in chain(*shards.values())}
    if len(digests) < sum(map(len, shards.values())):  # a copy's name is of its digest
        raise ValueError(f"the manifest names one sha256 for two shards: {COPY_AGAIN}")
    limit = int(options.cache_gib * 2**30)
    needed = 2 * sum(max(shard.bytes for shard in some) for some in shards.values())
    if limit < needed:
        raise ValueError(
            f"{options.option('cache_gib')}={options.cache_gib:g} has no room for two shards of "
            f"each of the tiers {sorted(shards)}, {needed / 2**30:.3g} GiB: raise it"
        )
    names = (options.option("cache"), options.option("cache_gib"), options.option("timeout_s"))
    copies = FarFiles(options.cache, limit, timeout_s=options.timeout_s, options=names)
    files = {
        name: [
            FarFile(address=f"{source}/{one.file}", bytes=one.bytes, sha256=one.sha256)
            for one in some
        ]
        for name, some in shards.items()
    }
    return ShardCopies(copies, files, limit)


def _is_inside(name: str) -> bool:
    """Whether a shard's name leads nowhere but into the dataset, as a path and as an address."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


def find_shards(directory: Path, manifest: Manifest, tier: str, looks: bool) -> list[str]:
    """Paths of a tier's shard files; where it looks, each is inside the dataset, a regular file,
    and of its size, or ValueError names it."""
    if not looks:
        return [str(directory / shard.file) for shard in manifest.tiers[tier].shards]
    paths: list[str] = []
    folders: set[Path] = set()
    for number, shard in enumerate(manifest.tiers[tier].shards):
        path = directory / shard.file
        entry = f"tiers.{tier}.shards.{number}.file"
        # One metadata call a file: its folder is resolved once, it itself if it is a link.
        if path.parent not in folders or "\0" in shard.file:
            path_inside(directory, shard.file, entry)
            folders.add(path.parent)
        found = _status(path, follow=False)
        if found is not None and stat.S_ISLNK(found.st_mode):
            found = _status(path_inside(directory, shard.file, entry), follow=True)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != shard.bytes:
            raise ValueError(
                f"shard {path} has {found and found.st_size} bytes, the manifest says "
                f"{shard.bytes}: it is missing or damaged; copy it again or rebuild the dataset"
            )
        paths.append(str(path))
    return paths


def _status(path: Path, *, follow: bool) -> os.stat_result | None:
    """What the file system says of a path, None where nothing is there."""
    try:
        return path.stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None


class _OpenFile:
    """A descriptor that closes when nobody refers to it: no thread loses it while it reads."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the interpreter's end this module's names are gone before the last file is.
        if self.descriptor >= 0:
            close(self.descriptor)


class ShardReader:
    """Keeps the most recently used files open, as many as the process can spare. Thread-safe."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(
        self, path: str, offset: int, size: int, bring: Callable[[], None] | None = None
    ) -> bytes:
        """`size` bytes of a file from `offset` on.

        `bring` puts a file there that is missing. OSError, naming the file and the remedy, where it
        still cannot be read after some tries.
        """
        for wait in (*_RETRY_AFTER_S, None):
            try:
                with progress.Reading(path):
                    return self._read(path, offset, size, bring)
            except OSError as error:
                # Opened anew: a stale handle does not heal. Out of descriptors: give all back.
                scarce = error.errno in (errno.EMFILE, errno.ENFILE)
                self.forget(list(self._open) if scarce else [path])
                failure = error
            if wait is not None:
                time.sleep(wait)
        raise OSError(
            f"shard {path} could not be read at byte {offset}, {len(_RETRY_AFTER_S)} retries in "
            f"{sum(_RETRY_AFTER_S):g} s: {failure}; repair the storage or copy the shard again, "
            "then start the same command to go on"
        ) from failure

    def _read(self, path: str, offset: int, size: int, bring: Callable[[], None] | None) -> bytes:
        # Referred to until the read is over, or another may close it.
        file = self._file(path, bring)
        block = os.pread(file.descriptor, size, offset)
        if len(block) < size:
            raise OSError(f"{len(block)} of {size} bytes came: the file was cut or replaced")
        return block

    def forget(self, paths: Iterable[str]) -> None:
        """Close files; one that is being read just now closes after the read."""
        with self._lock:
            for path in paths:
                self._open.pop(path, None)

    def read_ahead(
        self, path: str, offset: int, size: int, bring: Callable[[], None] | None = None
    ) -> None:
        """Have the system read a part of a file into its cache, where that can be."""
        file = self._file(path, bring)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def _forget_removed(self) -> None:
        """Close files that have no name any more: an evicted copy keeps its room until then."""
        with self._lock:
            for path, file in list(self._open.items()):
                if os.fstat(file.descriptor).st_nlink == 0:
                    del self._open[path]

    def _file(self, path: str, bring: Callable[[], None] | None) -> _OpenFile:
        with self._lock:
            if (file := self._open.get(path)) is not None:
                self._open.move_to_end(path)
                return file
        # Not under the lock: opening may take long on a network disk.
        try:
            opened = _OpenFile(path)
        except FileNotFoundError:
            if bring is None:
                raise
            bring()
            opened = _OpenFile(path)
        if bring is not None:  # other processes remove copies, too
            self._forget_removed()
        with self._lock:
            file = self._open.setdefault(path, opened)
            self._open.move_to_end(path)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            room = _MOST_OPEN if limit == resource.RLIM_INFINITY else limit // _SHARE_OF_LIMIT
            while len(self._open) > max(min(room, _MOST_OPEN), 1):
                self._open.popitem(last=False)
            return file


# One for the process, as the limit is: datasets, tiers and evaluation sets share it.
SHARD_READER = ShardReader()
