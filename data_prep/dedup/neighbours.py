"""Near duplicates among small views of pictures, without comparing all with all.

A view's code is 47 signs of low cosine waves: 35 of brightness, 6 of each colour, about a fifth of
their root mean square, because symmetric drawings have many waves near nothing. The four signs that
are least sure are taken either way (multi-probe, Q. Lv et al., "Multi-Probe LSH", 2007): 16 keys.
Views that share a key are candidates, and only these are compared. It depends on the views alone.

Sorted in one piece, keys would take 512 bytes a row. So they are cut into shares by a hash, which
the workers sort one at a time: 0.5 GB a worker, and 33 bytes a row here. Of more than 64 views
that share a key, each is compared with the 64 that follow.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.dedup import NOBODY
from data_prep.dedup.compare import differences
from data_prep.dedup.hashes import COLOUR_PX, GREY_PX, VIEWS, Views
from data_prep.pool import PoolOptions, Report, run_in_pool
from pretrain.base.arrays import read_array
from pretrain.base.progress import Bar

_GREY_WAVES = 35
_COLOUR_WAVES = 6
_LOW = 8  # of each direction, that the strength of a picture is taken over
_OFFSET = 0.2
_UNSURE = 4
_FLAT_LEVELS = 2.0  # root mean square of a picture's low frequencies, of 255 grey levels
_KEYS = VIEWS << _UNSURE  # of a row
_SHARE_KEYS = 1 << 23
_BLOCK_ROWS = 1 << 14
_WINDOW = 64
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hash
_HELD_PAIRS = 1 << 24

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
_Codes = NDArray[
    np.uint64
]  # (rows, VIEWS, 2): the sure signs, and which are unsure; 0 where left out


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies near what."""

    keeper: NDArray[np.int64]  # (N,) the earlier row of its group that stands for it, or NOBODY
    groups: int  # of two rows or more
    largest: int  # rows of the largest group, 0 without one
    flat: int  # rows that are not compared
    nearest: list[NDArray[np.int64]]  # for each evaluation set, (N,) its nearest row, or NOBODY


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What every worker needs."""

    files: list[Path]  # of views: the own, and those of the evaluation sets
    starts: list[int]  # the first row of each, and the number of all
    codes: Path
    shares: int
    most: float


def find(files: Sequence[Path], wanted: NDArray[np.bool_], most: float, run: PoolOptions) -> Found:
    """Groups of the rows of the first file, and which are near any of the further files.

    `most`: in how many levels of 255 near duplicates differ. A group is what near duplicates chain
    together. Rows that are not `wanted`, (N,), and flat ones are in no group and near nothing.
    """
    starts = np.cumsum([0, *(len(read_array(file)) for file in files)]).tolist()
    with tempfile.TemporaryDirectory(prefix=".search-", dir=files[0].parent) as scratch:
        search = _Search(
            files=list(files),
            starts=starts,
            codes=Path(scratch) / "codes.npy",
            shares=-(-starts[-1] * _KEYS // _SHARE_KEYS),
            most=most,
        )
        flat = _write_codes(search, wanted, run)
        nearest = [np.full(len(wanted), NOBODY) for _ in files[1:]]
        differ = [np.full(len(wanted), np.inf, np.float32) for _ in files[1:]]

        def own_pairs() -> Iterator[_Pairs]:
            shares = range(search.shares)
            results = run_in_pool(_near_pairs, search, shares, run, lambda _: None)
            for left, right, far in Bar(results, total=len(shares), unit="shares", what="compare"):
                for number, start in enumerate(starts[1:-1]):
                    there = (left < len(wanted)) & (start <= right) & (right < starts[number + 2])
                    _keep_nearest(
                        nearest[number],
                        differ[number],
                        (left[there], right[there] - start, far[there]),
                    )
                own = right < len(wanted)
                yield left[own], right[own]

        group = roots(own_pairs(), len(wanted))
    rows = np.arange(len(wanted))
    sizes = np.bincount(group, minlength=1)
    return Found(
        keeper=np.where(group != rows, group, NOBODY),
        groups=int(np.count_nonzero(sizes > 1)),
        largest=int(sizes.max()) if sizes.max() > 1 else 0,
        flat=flat,
        nearest=nearest,
    )


def _keep_nearest(
    nearest: NDArray[np.int64],
    differ: NDArray[np.float32],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]],
) -> None:
    """Of what is near a row, the row that differs least, or the first of these."""
    for row, other, levels in zip(*(part.tolist() for part in pairs), strict=True):
        if (levels, other) < (differ[row], nearest[row]):
            nearest[row], differ[row] = other, levels


def _write_codes(search: _Search, wanted: NDArray[np.bool_], run: PoolOptions) -> int:
    """The codes of all rows, in a file; how many wanted rows are flat."""
    shape = (search.starts[-1], VIEWS, 2)
    codes = np.lib.format.open_memmap(search.codes, "w+", np.uint64, shape)
    blocks = [
        (number, first)
        for number in range(len(search.files))
        for first in range(0, search.starts[number + 1] - search.starts[number], _BLOCK_ROWS)
    ]
    flat = 0
    for number, first, part in run_in_pool(_code_block, search, blocks, run, lambda _: None):
        if number == 0:
            here = wanted[first : first + len(part)]
            flat += int(np.count_nonzero(here & ~part.any((1, 2))))
            part[~here] = 0
        start = search.starts[number] + first
        codes[start : start + len(part)] = part
    codes.flush()
    return flat


def _code_block(search: _Search, block: tuple[int, int], report: Report) -> tuple[int, int, _Codes]:
    """The block, and the codes of its rows."""
    del report
    number, first = block
    return number, first, codes_of(read_array(search.files[number])[first : first + _BLOCK_ROWS])


def codes_of(views: Views) -> _Codes:
    """(rows, VIEWS, 2): the signs that are sure, and which are not; 0 where a picture is flat."""
    grey = views[..., : GREY_PX**2].reshape(-1, GREY_PX, GREY_PX)
    colour = views[..., GREY_PX**2 :].reshape(-1, COLOUR_PX, COLOUR_PX, 2).astype(np.float32) - 128
    down, across = _wave_order()
    light = _waves(grey.astype(np.float32))[:, down[1:], across[1:]]
    slow = down[:_COLOUR_WAVES], across[:_COLOUR_WAVES]
    tones = [_waves(colour[..., tone])[:, slow[0], slow[1]] for tone in range(2)]
    strength = np.square(light).sum(axis=1)
    flat = np.sqrt(strength) < _FLAT_LEVELS
    strength = strength + sum(np.square(tone).sum(axis=1) for tone in tones)
    waves = np.concatenate([light[:, :_GREY_WAVES], *tones], axis=1)
    above = waves / np.sqrt(np.maximum(strength, 1) / _GREY_WAVES)[:, None] - _OFFSET
    bits = np.uint64(1) << np.arange(waves.shape[1], dtype=np.uint64)
    least = np.argsort(np.abs(above), axis=1, kind="stable")[:, :_UNSURE]
    unsure = bits[least].sum(axis=1, dtype=np.uint64)
    sure = np.where(above > 0, bits, np.uint64(0)).sum(axis=1, dtype=np.uint64) & ~unsure
    codes = np.stack([sure, unsure], axis=1).reshape(-1, VIEWS, 2)
    codes[flat.reshape(-1, VIEWS).any(axis=1)] = 0
    return codes


def _waves(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 8, 8) lowest cosine waves of (B, px, px), in levels."""
    px = planes.shape[-1]
    cosines = dct(np.eye(px), axis=0, norm="ortho")[:_LOW].astype(np.float32)
    return np.asarray(cosines @ planes @ cosines.T / px)


@cache
def _wave_order() -> NDArray[np.int64]:
    """(2, 64) down and across of the waves, the slowest first."""
    places = [(down, across) for down in range(_LOW) for across in range(_LOW)]
    return np.array(sorted(places, key=lambda at: (sum(at), at))).T


def _near_pairs(
    search: _Search, share: int, report: Report
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Left and right rows of the near duplicates by the keys of a share, and their differences."""
    codes = read_array(search.codes)
    keys, entries = _share_of_keys(codes, share, search.shares)
    order = np.argsort(keys, kind="stable")
    keys, entries = keys[order], entries[order]
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    left = np.arange(len(keys) - 1)
    for step in range(1, _WINDOW + 1):
        left = left[left < len(keys) - step]
        left = left[keys[left] == keys[left + step]]
        one, other = entries[left], entries[left + step]
        # Of the keys that two views share one makes a pair: without signs that both find unsure.
        both = codes[one // VIEWS, one % VIEWS, 1] & codes[other // VIEWS, other % VIEWS, 1]
        pair = (keys[left] & both == 0) & (one // VIEWS < other // VIEWS)
        pair &= (one % VIEWS == 0) | (other % VIEWS == 0)
        pair &= one // VIEWS < search.starts[1]
        one, other = one[pair], other[pair]
        for first in range(0, len(one), _BLOCK_ROWS):
            mine, its = one[first : first + _BLOCK_ROWS], other[first : first + _BLOCK_ROWS]
            far = differences(_views_at(search, mine), _views_at(search, its))
            near = far <= search.most
            found.append((mine[near] // VIEWS, its[near] // VIEWS, far[near]))
        report(step)
    return (
        np.concatenate([np.empty(0, np.int64), *(pairs[0] for pairs in found)]),
        np.concatenate([np.empty(0, np.int64), *(pairs[1] for pairs in found)]),
        np.concatenate([np.empty(0, np.float32), *(pairs[2] for pairs in found)]),
    )


def _share_of_keys(
    codes: _Codes, share: int, shares: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The keys of a share, and the view of each: row * VIEWS + view, rising."""
    keys: list[NDArray[np.uint64]] = []
    entries: list[NDArray[np.int64]] = []
    for first in range(0, len(codes), _BLOCK_ROWS):
        some = codes[first : first + _BLOCK_ROWS].reshape(-1, 2)
        there = np.flatnonzero(some[:, 1])  # every view that counts has unsure signs
        left = some[there, 1]
        each = some[there, 0][:, None]
        for _ in range(_UNSURE):
            bit = left & (~left + np.uint64(1))  # the lowest
            left = left ^ bit
            each = np.concatenate([each, each | bit[:, None]], axis=1)
        mine = ((each * _SPREAD) >> np.uint64(40)) % np.uint64(shares) == share
        keys.append(each[mine])
        entries.append(first * VIEWS + there[np.nonzero(mine)[0]])
    return np.concatenate(keys), np.concatenate(entries)


def _views_at(search: _Search, entries: NDArray[np.int64]) -> Views:
    """(B, VIEW_BYTES) of views, of whichever file."""
    rows, views = entries // VIEWS, entries % VIEWS
    of_file = np.searchsorted(search.starts, rows, side="right") - 1
    arrays = [read_array(file) for file in search.files]
    found = np.empty((len(entries), arrays[0].shape[-1]), np.uint8)
    for number, array in enumerate(arrays):
        here = of_file == number
        found[here] = array[rows[here] - search.starts[number], views[here]]
    return found


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
