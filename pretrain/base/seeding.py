"""Random numbers as arithmetic: the same draw for a sample on any worker, rank or world size.

Library generators carry a state, so what a sample gets would depend on who drew before it. Here a
draw is a hash of (seed, sample position, purpose, counter), vectorised over a whole batch.
"""

import enum

import numpy as np
from numpy.typing import NDArray

# splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Purpose(enum.IntEnum):
    """What a draw is for: draws of different purposes are independent of each other."""

    CAPTION = 1
    TEXT_TOKENS = 2
    IMAGE_TOKENS = 3
    CROP = 4
    AUGMENT = 5
    ORDER = 6
    SUBSTITUTE = 7
    BALANCE = 8


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def hashes(
    seed: int, positions: NDArray[np.int64], purpose: Purpose, count: int
) -> NDArray[np.uint64]:
    """(B, count) independent 64-bit hashes for sample positions (B,) of a run with this seed."""
    with np.errstate(over="ignore"):
        stream = _mix(np.asarray([seed], np.uint64) * _GOLDEN + np.uint64(purpose))
        sample = _mix(stream + positions.astype(np.uint64) * _GOLDEN)
        counter = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        return _mix(sample[:, None] + counter[None, :])


def uniforms(
    seed: int, positions: NDArray[np.int64], purpose: Purpose, count: int
) -> NDArray[np.float64]:
    """(B, count) uniform draws in [0, 1) for sample positions (B,) of a run with this seed."""
    mantissa = hashes(seed, positions, purpose, count) >> np.uint64(11)
    return mantissa.astype(np.float64) * 2.0**-53
