"""What this process is doing, and since when: said where the work is, read by the watchdog."""

import threading
import time
from types import TracebackType

_last: tuple[str, float] = ("starting", time.monotonic())
_reads: dict[int, tuple[str, float]] = {}  # by thread


def doing(what: str) -> None:
    """Say that work has got as far as this; costs less than a microsecond."""
    global _last
    _last = (what, time.monotonic())


def last() -> tuple[str, float]:
    """(what was said last, seconds since)."""
    what, at = _last
    return what, time.monotonic() - at


class Reading:
    """While a thread reads a file. Not a generator: a sample is read in microseconds."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        _reads[threading.get_ident()] = (self._path, time.monotonic())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _reads.pop(threading.get_ident(), None)


def longest_read() -> tuple[str, float] | None:
    """(file, seconds) of the read that has gone on for longest; None without any."""
    found = list(_reads.values())
    if not found:
        return None
    path, at = min(found, key=lambda read: read[1])
    return path, time.monotonic() - at
