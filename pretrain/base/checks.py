"""Checks of option values, each with the option's full name in its message."""

import math
from collections.abc import Mapping


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
