"""What this process is doing, and since when: said where the work is, read by the watchdog."""

import time

_last: tuple[str, float] = ("starting", time.monotonic())


def doing(what: str) -> None:
    """Say that work has got as far as this; costs less than a microsecond."""
    global _last
    _last = (what, time.monotonic())


def last() -> tuple[str, float]:
    """(what was said last, seconds since)."""
    what, at = _last
    return what, time.monotonic() - at
