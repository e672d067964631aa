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

_BLOCK_ROWS = 1 << 13


def text_tier(directory: Path, manifest: Manifest) -> Dataset:
    """The tier whose shards hold all that is no picture; `build` makes it the smallest."""
    return Dataset(directory, manifest.text_tier, looks=False)


def sample_metadata(directory: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Metadata of every sample in order, from the text tier."""
    reader = text_tier(directory, manifest)
    for rows in space_rows(manifest.samples, None):
        for (details,) in reader.members(rows, ("json",)):
            yield json.loads(details)["meta"]


def base_weights(directory: Path, name: str | None, manifest: Manifest) -> NDArray[np.float32]:
    """(samples,) weights of that name, which --weights asked for and others go on from; or ones."""
    if name is None:
        return np.ones(manifest.samples, "<f4")
    return read_weights(directory, name, manifest, "--weights")[0]


def space_rows(samples: int, wanted: int | None) -> Iterator[NDArray[np.int64]]:
    """Ascending rows, all of them or so many at equal distances, in blocks of bounded size."""
    count = samples if wanted is None else min(wanted, samples)
    for first in range(0, count, _BLOCK_ROWS):
        places = np.arange(first, min(first + _BLOCK_ROWS, count), dtype=np.int64)
        yield (2 * places + 1) * samples // (2 * count)
