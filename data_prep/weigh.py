"""Weights by groups, of a metadata column or of like pictures: samples of large groups are shown
less often, those of small ones more. The groups are kept as concepts."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset_tasks import DatasetTasks, FarOptions, RowReader
from data_prep.pool import RunOptions, is_share
from data_prep.records import Record
from data_prep.similarity.clusters import cluster
from pretrain.base.checks import check_between, check_positive
from pretrain.dataset.concepts import write_concepts
from pretrain.dataset.embeddings import open_embeddings
from pretrain.dataset.manifest import Manifest, read_manifest, weights_file
from pretrain.dataset.rows import row_blocks, sample_metadata
from pretrain.dataset.sample_weights import open_values, write_weights

_SHOWN_GROUPS = 10


@dataclass(frozen=True, kw_only=True)
class WeighOptions:
    """How often the samples of a group are shown"""

    by: str | None = None
    """Metadata column whose values are the groups. Give this, `clusters` or `file`."""
    clusters: int | None = None
    """So many groups of like pictures: spherical k-means over `embeddings`."""
    file: Path | None = None
    """A .npy file of your own weights, one number a sample in the dataset's order: checked, and
    kept as the dataset's, in float32."""
    embeddings: str | None = None
    """Name of the embeddings that are clustered: DIR/embeddings/NAME, which `data_prep embed`
    writes."""
    seed: int = 0
    """Of the clusters' first centres."""
    starts: int = 5
    """Clusters are fitted from so many first centres and the best fit is kept; 1 is the fastest."""
    out: str
    """Name of the weights: DIR/weights/NAME.npy, which training reads by data.weights=NAME. The
    groups go to DIR/concepts/NAME.npy, for data.balance.concepts=NAME."""
    alpha: float = 0.5
    """A group of n samples is shown in proportion to n^alpha: 1 as often as without weights, 0 all
    groups alike (DynamiCS, arXiv 2604.27932: 0.2 to 0.5)."""
    target: int | None = None
    """Samples shown an epoch; by default as many as the dataset has."""

    def __post_init__(self) -> None:
        check_between({"--alpha": self.alpha}, 0, 10)
        check_positive({"--target": self.target, "--clusters": self.clusters})
        check_positive({"--starts": self.starts})
        if [self.by, self.clusters, self.file].count(None) != 2:
            raise ValueError(
                f"--by={self.by}, --clusters={self.clusters}, --file={self.file}: weights come "
                "from a metadata column, from clusters, or from a file; give one of the three"
            )
        if (self.clusters is None) != (self.embeddings is None):
            raise ValueError(
                f"--clusters={self.clusters}, --embeddings={self.embeddings}: clusters are made of "
                "embeddings; give both or neither"
            )
        of_clusters = ["seed", "starts"] if self.clusters is None else []
        of_groups = ["alpha", "target"] if self.file is not None else []
        if idle := [name for name in (*of_groups, *of_clusters) if self._is_given(name)]:
            told = ", ".join(f"--{name}={getattr(self, name)}" for name in idle)
            given = f"--by={self.by}" if self.file is None else f"--file={self.file}"
            raise ValueError(f"{told}: does nothing beside {given}; leave it out")

    def _is_given(self, name: str) -> bool:
        """Whether an option is another than by default."""
        return bool(getattr(self, name) != getattr(WeighOptions, name))


def weigh(directory: Path, options: WeighOptions, pool: RunOptions, far: FarOptions) -> str:
    """Write the weights and the groups of a dataset; returns a table of the largest groups. Of a
    share, what it did.

    ValueError or FileNotFoundError name what to change. Reads every sample's metadata, or its
    picture's embedding, once or twice.
    """
    path = weights_file(directory, options.out, "--out")
    manifest = read_manifest(directory)
    if options.by is None and is_share(pool):
        raise ValueError("--task-index goes with --by only: one process makes the other weights")
    if options.file is not None:
        values = open_values(options.file, manifest.samples, f"--file={options.file}", given=True)
        write_weights(directory, options.out, manifest, values)
        return f"{path}: {values.sum(dtype=np.float64):,.0f} samples shown an epoch"
    target = options.target or manifest.samples
    if options.by is None:
        groups, names = _clusters(directory, manifest, options)
        sizes = np.bincount(groups)
        weights = _group_weights(sizes, options.alpha, target)
        write_weights(directory, options.out, manifest, weights[groups])
        write_concepts(directory, options.out, manifest, groups)
        largest = _largest(sizes, np.arange(len(sizes)))
        return _table(path, {group: names[group] for group in largest}, sizes, weights)
    reader = RowReader(directory=directory, manifest=manifest, shards=far.shards)
    tasks = _value_tasks(reader, options.by)
    if (line := tasks.do(pool, "blocks of samples")) is not None:
        return line
    groups, firsts = _groups(tasks.records, manifest.samples)
    sizes = np.bincount(groups)
    weights = _group_weights(sizes, options.alpha, target)
    write_weights(directory, options.out, manifest, weights.astype("<f4")[groups])
    write_concepts(directory, options.out, manifest, groups)
    tasks.remove()
    largest = _largest(sizes, firsts)
    shown = {group: _value_at(reader, options.by, int(firsts[group])) for group in largest}
    return _table(path, shown, sizes, weights)


def _group_weights(sizes: np.ndarray, alpha: float, target: int) -> np.ndarray:
    """(groups,) weight of a sample of each group of `sizes` samples.

    DynamiCS (arXiv 2604.27932): a group of n is shown n^alpha / sum(n^alpha) x target times an
    epoch, spread evenly over its samples.
    """
    shares = sizes.astype(np.float64) ** alpha
    return shares / shares.sum() * target / sizes


def _clusters(
    directory: Path, manifest: Manifest, options: WeighOptions
) -> tuple[np.ndarray, list[str]]:
    """(number of each sample's group, the groups' names)."""
    assert options.clusters is not None and options.embeddings is not None  # checked together
    embeddings = open_embeddings(directory, manifest, options.embeddings)
    groups = cluster(embeddings, options.clusters, options.seed, options.starts)
    return groups, [f"cluster {number}" for number in range(int(groups.max()) + 1)]


def _value_tasks(
    reader: RowReader, column: str
) -> DatasetTasks[tuple[RowReader, str], tuple[int, int]]:
    """The values of a metadata column, as 64 bits each."""
    return DatasetTasks(
        directory=reader.directory,
        name="weigh",
        asked={"dataset": reader.manifest.fingerprint, "column": column},
        function=_digest_values,
        state=(reader, column),
        items=row_blocks(reader.manifest.samples),
    )


def _digest_values(state: tuple[RowReader, str], block: tuple[int, int]) -> Record:
    """64 bits of each value. Different ones share them with a chance of 3 in 10,000 among 100
    million values."""
    reader, column = state
    digests = np.empty(block[1] - block[0], np.uint64)
    known: dict[str, int] = {}
    for place, meta in enumerate(sample_metadata(reader.texts, *block)):
        value = _value_of(reader, meta, column, block[0] + place)
        if value not in known:
            told = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            known[value] = int.from_bytes(told, "little")
        digests[place] = known[value]
    return {"digests": digests}


def _value_of(reader: RowReader, meta: dict[str, Any], column: str, row: int) -> str:
    """A sample's value as JSON."""
    if column not in meta:
        raise ValueError(
            f"--by {column}: {reader.directory} has no such metadata (sample {row}); choose one of "
            f"{sorted(meta)}"
        )
    return json.dumps(meta[column], ensure_ascii=False, sort_keys=True)


def _value_at(reader: RowReader, column: str, row: int) -> str:
    return _value_of(reader, next(sample_metadata(reader.texts, row, row + 1)), column, row)


def _groups(records: Iterable[Record], samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(number of each sample's group, the first row of each group). Goes over the records twice."""
    values, more = np.empty(0, np.uint64), [np.empty(0, np.uint64)]
    for record in records:
        more.append(np.unique(record["digests"]))
        if sum(map(len, more)) > len(values):  # so that merging stays linear, or nearly so
            values, more = np.unique(np.concatenate([values, *more])), []
    values = np.unique(np.concatenate([values, *more]))
    groups = np.empty(samples, np.min_scalar_type(len(values)))
    firsts, done = np.full(len(values), samples), 0
    for record in records:
        digests: np.ndarray = record["digests"]
        rows, found = np.arange(done, done + len(digests)), np.searchsorted(values, digests)
        groups[rows] = found
        np.minimum.at(firsts, found, rows)
        done += len(digests)
    return groups, firsts


def _largest(sizes: np.ndarray, firsts: np.ndarray) -> list[int]:
    """The groups that are shown; of equal ones that of the first row."""
    chosen: list[int] = np.lexsort((firsts, -sizes))[:_SHOWN_GROUPS].tolist()
    return chosen


def _table(path: Path, names: dict[int, str], sizes: np.ndarray, weights: np.ndarray) -> str:
    """What was written: the largest groups, how many samples they have, how many are shown.

    names: of the largest alone.
    """
    shown = sizes * weights
    lines = [
        ("group", "samples", "share", "shown", "share", "weight"),
        *(
            (
                *(name, f"{sizes[group]:,}", f"{sizes[group] / sizes.sum():.2%}"),
                *(f"{shown[group]:,.1f}", f"{shown[group] / shown.sum():.2%}"),
                f"{weights[group]:.4g}",
            )
            for group, name in names.items()
        ),
    ]
    wide = max(len(line[0]) for line in lines)
    table = [
        f"{name:<{wide}}  " + "  ".join(f"{cell:>12}" for cell in cells) for name, *cells in lines
    ]
    summary = (
        f"{path}: {sizes.sum():,} samples in {len(sizes):,} groups, {shown.sum():,.0f} shown an "
        f"epoch, the largest weight is {weights.max():.4g}"
    )
    return "\n".join([*table, summary])
