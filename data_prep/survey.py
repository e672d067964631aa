"""What is counted of a dataset, by blocks of rows that many processes share."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset_tasks import DatasetTasks, RowReader
from data_prep.pool import PoolOptions
from data_prep.recaption.files import open_all
from data_prep.records import Record
from pretrain.dataset.manifest import Manifest, read_manifest, read_token_counts
from pretrain.dataset.rows import row_blocks, space_rows
from pretrain.dataset.shards import ShardOptions

SIZES = {
    "width_px": "width, px",
    "height_px": "height, px",
    "shorter_px": "shorter side, px",
    "aspect": "width / height",
}


@dataclass(frozen=True)
class Tally:
    """How often each value occurs; as large as there are different values."""

    counts: Counter[Any] = field(default_factory=Counter)

    def add(self, values: NDArray[Any]) -> None:
        found, times = np.unique(values, return_counts=True)
        self.add_counts(zip(found.tolist(), times.tolist(), strict=True))

    def add_counts(self, counts: Iterable[tuple[Any, int]]) -> None:
        """Of another tally."""
        for value, count in counts:
            self.counts[value] += count

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def mean(self) -> float:
        return sum(value * count for value, count in self.counts.items()) / self.total

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of all does not exceed."""
        values = sorted(self.counts)
        reached = np.cumsum([self.counts[value] for value in values])
        return values[int(np.searchsorted(reached, share * self.total - 1e-9))]

    def share_above(self, limit: float) -> float:
        return sum(count for value, count in self.counts.items() if value > limit) / self.total


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Everything that was counted of a dataset."""

    directory: Path
    manifest: Manifest
    looked_at: int
    sizes: dict[str, Tally]  # by SIZES; of the source's pictures, before tiers shrink them
    lengths: dict[str, Tally]  # tokens of each caption, by its name, of the samples that have it
    token_counts: NDArray[np.uint64]  # (V,)
    recaptions: dict[str, str]  # what is to be said of each caption that came later, by its name

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> count, the most frequent first, without those that never came."""
        found = sorted(self.manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
        return {reason: count for reason, count in found if count}

    @property
    def rows(self) -> int:
        """What there was before anything was rejected."""
        return self.manifest.samples + sum(self.manifest.rejected.values())

    @property
    def used_ids(self) -> int:
        return int(np.count_nonzero(self.token_counts))


@dataclass(frozen=True, kw_only=True)
class _Counting(RowReader):
    """What a worker needs to count rows."""

    samples: int | None


def survey(
    directory: Path, samples: int | None, pool: PoolOptions, shards: ShardOptions
) -> Survey | str:
    """Count; of a share, what is to be said of it. ValueError or OSError name what cannot be read
    and the remedy."""
    manifest = read_manifest(directory)
    counts = read_token_counts(directory, manifest)
    recaptions, told = open_all(directory, manifest)
    looked_at = min(samples or manifest.samples, manifest.samples)
    tasks = DatasetTasks(
        directory=directory,
        name="stats",
        asked={
            "dataset": manifest.fingerprint,
            "samples": looked_at,
            "recaptions": {one.name: one.sha256 for one in recaptions},
        },
        function=_count,
        state=_Counting(directory=directory, manifest=manifest, shards=shards, samples=samples),
        items=row_blocks(looked_at),
    )
    if (line := tasks.do(pool, "blocks of samples")) is not None:
        return line
    sizes = {name: Tally() for name in SIZES}
    lengths = {name: Tally() for name in (*manifest.captions, *(one.name for one in recaptions))}
    for record in tasks.records:
        for kind, tallies in (("sizes", sizes), ("lengths", lengths)):
            for name, tally in tallies.items():
                tally.add_counts(record[kind][name])
    tasks.remove()
    return Survey(
        directory=directory,
        manifest=manifest,
        looked_at=looked_at,
        sizes=sizes,
        lengths=lengths,
        token_counts=counts,
        recaptions=told,
    )


def _count(state: _Counting, block: tuple[int, int]) -> Record:
    """(value, count) of what is counted, of some of the rows that are looked at."""
    manifest, reader = state.manifest, state.texts
    sizes = {name: Tally() for name in SIZES}
    lengths = {name: Tally() for name in manifest.captions}
    recaptions, _ = open_all(state.directory, manifest)
    lengths |= {one.name: Tally() for one in recaptions}
    for rows in space_rows(manifest.samples, state.samples, *block):
        tokens = reader.index["tokens"][rows]
        for column, name in enumerate(manifest.captions):
            lengths[name].add(tokens[:, column][tokens[:, column] > 0])
        for one in recaptions:
            tokens = one.index["tokens"][rows]
            lengths[one.name].add(tokens[tokens > 0])
        pixels = np.empty((len(rows), 2), np.int64)
        for place, (details,) in enumerate(reader.members(rows, ("json",))):
            found = json.loads(details)
            pixels[place] = found["width"], found["height"]
        _add_sizes(sizes, pixels)
    return {
        kind: {name: list(tally.counts.items()) for name, tally in tallies.items()}
        for kind, tallies in (("sizes", sizes), ("lengths", lengths))
    }


def _add_sizes(sizes: dict[str, Tally], pixels: NDArray[np.int64]) -> None:
    """pixels: (n, 2), width and height."""
    width, height = pixels[:, 0], pixels[:, 1]
    sizes["width_px"].add(width)
    sizes["height_px"].add(height)
    sizes["shorter_px"].add(pixels.min(axis=1))
    sizes["aspect"].add(np.round(width / height, 2))  # to hundredths, so that the tally stays small
