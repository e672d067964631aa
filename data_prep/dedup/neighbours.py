"""Hashes near one another, all pairs of them, without comparing all with all.

Bands (multi-index hashing, M. Norouzi et al., "Fast Search in Hamming Space with Multi-Index
Hashing", 2012): cut into distance + k bands, two hashes within the distance agree in k of them at
least. So for each choice of k bands the hashes are sorted by these, and only those that agree
there are compared. Nothing is missed, and the result depends on the hashes alone; faiss's
IndexBinaryMultiHash misses pairs unless it flips as many bits as the distance in each of its
tables, holds all its tables in memory, and would be one more library.

Memory: about 100 bytes a row with the hashes (91 to 104 above them, measured at 10 and 1 million):
10 GB for 100 million. It is a fixed number of arrays of 8 bytes a row: the values, each row's place
among them, one table's order and ranked values at a time, and the groups. Pairs are folded into
groups as they come, 16 million or so at a time, so that their number does not count.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.dedup import NOBODY
from data_prep.dedup.hashes import FLAT

_BITS = 64
_SORT_COST = 2  # sorting one hash costs as much as so many comparisons: 41 ns and 18, measured
_MOST_PARTS = 8  # bands that a table is sorted by
_COMPARISON_S = 8e-8  # sorting among them, at 10 million hashes; 2e-8 where they fit the caches
_BLOCK = 1 << 22  # pairs compared at once
_HELD_PAIRS = 1 << 24

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies near what."""

    keeper: NDArray[np.int64]  # (N,) the earlier row of its group that stands for it, or NOBODY
    groups: int  # of two rows or more
    largest: int  # rows of the largest group, 0 without one
    contaminated: list[NDArray[np.bool_]]  # for each evaluation set, (N,)


def find(
    hashes: NDArray[np.uint64],
    wanted: NDArray[np.bool_],
    against: Sequence[NDArray[np.uint64]],
    distance: int,
) -> Found:
    """Groups of (N,) `hashes`, and which are near any of the sets `against`.

    A group is what pairs within the distance chain together. Rows that are not `wanted`, and FLAT
    ones, are in no group and near nothing.
    """
    rows = np.flatnonzero(wanted & (hashes != FLAT))
    mine = hashes[rows]
    others = [np.unique(one[one != FLAT]) for one in against]
    values = np.unique(np.concatenate([mine, *others]))
    place = np.searchsorted(values, mine)  # of each row among the values
    first = np.full(len(values), len(hashes), np.int64)
    first[place[::-1]] = rows[::-1]  # the last assignment stays: the smallest row
    inside = first < len(hashes)
    near = [np.zeros(len(values), bool) for _ in others]
    for hit, other in zip(near, others, strict=True):
        hit[np.searchsorted(values, other)] = True
    held = [hit.copy() for hit in near]

    def own_pairs() -> Iterator[_Pairs]:
        for left, right in _near_pairs(values, distance):
            for hit, has in zip(near, held, strict=True):
                hit[left[has[right]]] = True
                hit[right[has[left]]] = True
            own = inside[left] & inside[right]
            yield left[own], right[own]

    root = roots(own_pairs(), len(values))
    np.minimum.at(first, root, first)
    group = root[place]
    keeper = np.full(len(hashes), NOBODY)
    keeper[rows] = np.where(rows != first[group], first[group], NOBODY)
    sizes = np.bincount(group, minlength=1)
    contaminated = [np.zeros(len(hashes), bool) for _ in others]
    for flags, hit in zip(contaminated, near, strict=True):
        flags[rows] = hit[place]
    return Found(
        keeper=keeper,
        groups=int(np.count_nonzero(sizes > 1)),
        largest=int(sizes.max()) if sizes.max() > 1 else 0,
        contaminated=contaminated,
    )


def _near_pairs(values: NDArray[np.uint64], distance: int) -> Iterator[_Pairs]:
    """Places of all pairs of different `values` within the distance, some more than once."""
    for mask in masks(len(values), distance):
        order = np.argsort(values & mask)
        ranked = values[order]
        step = 1
        left = np.arange(len(values) - 1)
        while len(left):
            same: list[NDArray[np.int64]] = []
            for start in range(0, len(left), _BLOCK):
                part = left[start : start + _BLOCK]
                unlike = ranked[part] ^ ranked[part + step]
                agree = (unlike & mask) == 0
                same.append(part[agree])
                close = np.bitwise_count(unlike) <= distance
                close &= agree
                if close.any():
                    yield order[part[close]], order[part[close] + step]
            step += 1
            left = np.concatenate(same)
            left = left[left + step < len(values)]


def masks(count: int, distance: int) -> list[np.uint64]:
    """The bits of each table: so many of the distance + k bands that `count` hashes cost least."""
    if distance == 0:
        return []  # the values differ
    _, parts = _cheapest(count, distance)
    edges = [_BITS * band // (distance + parts) for band in range(distance + parts + 1)]
    bands = [(1 << stop) - (1 << start) for start, stop in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, parts)]


def _cheapest(count: int, distance: int) -> tuple[float, int]:
    """Comparisons that `count` hashes cost at least, and the k of it.

    Of bits that are set by chance, n hashes make n^2 / 2^(bits + 1) pairs in a table.
    """

    def cost(parts: int) -> float:
        bits = parts * (_BITS // (distance + parts))
        return comb(distance + parts, parts) * count * (_SORT_COST + count / 2 ** (bits + 1))

    return min((cost(parts), parts) for parts in range(1, _MOST_PARTS + 1))


def estimate_s(count: int, distance: int) -> float:
    """About how many seconds of one core the pairs of `count` hashes take."""
    return _cheapest(count, distance)[0] * _COMPARISON_S if distance else 0.0


def roots(pairs: Iterable[_Pairs], count: int) -> NDArray[np.int64]:
    """(count,) the smallest number that pairs chain each number to: itself where it is in none."""
    forest = np.empty((2, 0), np.int64)
    held: list[NDArray[np.int64]] = []
    size = 0
    for left, right in pairs:
        held.append(np.stack([left, right]))
        size += len(left)
        if size > _HELD_PAIRS + forest.shape[1]:
            forest = _fold(np.concatenate([forest, *held], axis=1))
            held, size = [], 0
    forest = _fold(np.concatenate([forest, *held], axis=1))
    root = np.arange(count)
    root[forest[0]] = forest[1]
    return root


def _fold(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(2, pairs) to (2, numbers in them): each number with the smallest of its component."""
    numbers, compact = np.unique(pairs, return_inverse=True)
    left, right = compact.reshape(2, -1)
    graph = coo_array((np.ones(len(left), np.uint8), (left, right)), shape=(len(numbers),) * 2)
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    return np.stack([numbers, numbers[smallest[component]]])
