"""Checks of option values, each with the option's full name in its message."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def check_positive(values: Mapping[str, float | None]) -> None:
    """ValueError for the first value that is given and not a positive, finite number."""
    for option, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{option}={value}: it must be positive")


def check_between(values: Mapping[str, float | None], low: float, high: float) -> None:
    """ValueError for the first value that is given and not in [low, high)."""
    for option, value in values.items():
        if value is not None and not low <= value < high:
            raise ValueError(f"{option}={value}: it must be at least {low:g} and below {high:g}")


def check_at_most(values: Mapping[str, float | None], most: float) -> None:
    """ValueError for the first value that is given and past what any machine can hold or finish."""
    for option, value in values.items():
        if value is not None and not value <= most:
            raise ValueError(f"{option}={value}: it can be at most {most:,}")


def check_local(folders: Mapping[str, Path | None]) -> None:
    """ValueError for the first folder that is an address, s3://…: it would be made on this disk."""
    for option, folder in folders.items():
        if folder is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
            address = str(folder).replace(":/", "://", 1)
            raise ValueError(
                f"{option}={address}: an object store is not written to; name a folder of this "
                "machine, or one where the store is mounted"
            )


def differences(ours: Any, theirs: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, ours, theirs) of all that two trees of mappings have otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            yield from differences(ours.get(name), theirs.get(name), f"{where}.{name}")
    elif ours != theirs:
        yield where, ours, theirs
