"""Many rows of a dataset directory, for those who count, weigh or show them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.manifest import Manifest
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import read_weights
from pretrain.dataset.shards import ShardOptions

_BLOCK_ROWS = 1 << 13
_BLOCKS = 1 << 12  # at most, so that their results are not too many files


def text_tier(directory: Path, manifest: Manifest, shards: ShardOptions | None = None) -> Dataset:
    """The tier whose shards hold all that is no picture; `build` makes it the smallest."""
    return Dataset(directory, manifest.text_tier, shards=shards, looks=False)


def sample_metadata(reader: Dataset, first: int, stop: int) -> Iterator[dict[str, Any]]:
    """Metadata of rows first…stop, in order."""
    for rows in space_rows(len(reader), None, first, stop):
        for (details,) in reader.members(rows, ("json",)):
            yield json.loads(details)["meta"]


def base_weights(directory: Path, name: str | None, manifest: Manifest) -> NDArray[np.float32]:
    """(samples,) weights of that name, which --weights asked for and others go on from; or ones."""
    if name is None:
        return np.ones(manifest.samples, "<f4")
    return read_weights(directory, name, manifest, "--weights")[0]


def space_rows(
    samples: int, wanted: int | None, first: int = 0, stop: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Ascending rows, all of them or so many at equal distances, in blocks of bounded size.

    first, stop: of those rows the first…stop-th alone.
    """
    count = samples if wanted is None else min(wanted, samples)
    end = count if stop is None else stop
    for begin in range(first, end, _BLOCK_ROWS):
        places = np.arange(begin, min(begin + _BLOCK_ROWS, end), dtype=np.int64)
        yield (2 * places + 1) * samples // (2 * count)


def row_blocks(count: int, least: int = 2 * _BLOCK_ROWS) -> list[tuple[int, int]]:
    """(first, behind the last) of the tasks that many rows are spread over: the same for any number
    of processes."""
    size = max(least, -(-count // _BLOCKS))
    return [(first, min(first + size, count)) for first in range(0, count, size)]
