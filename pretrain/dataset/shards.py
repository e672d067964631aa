"""Reading pieces of shard files: few files open at once, and an I/O error is never bad data."""

import errno
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from pretrain.base import progress

# A shuffle window touches some hundred shards at once; more open files would save no more opens.
_MOST_OPEN = 256
# Of the process's limit (1,024 is usual), what shards may take: sockets, logs, checkpoints and
# the libraries' own files need the rest.
_SHARE_OF_LIMIT = 4
# Seconds before each further try. A server's hiccup or a stale NFS handle is over within seconds;
# what lasts longer is an outage, and then a stopped run that resumes is better than a hanging one.
_RETRY_AFTER_S = (0.25, 1.0, 3.0)


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
            f"{sum(_RETRY_AFTER_S):g} s: {failure}; mend the storage or copy the shard again, then "
            "start the same command to go on"
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
