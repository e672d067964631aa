"""Weights by groups, of a metadata column or of like pictures: samples of large groups are shown
less often, those of small ones more. The groups are kept as concepts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.similarity.clusters import cluster
from pretrain.base.checks import check_between, check_positive
from pretrain.base.progress import Bar
from pretrain.dataset.concepts import write_concepts
from pretrain.dataset.embeddings import open_embeddings
from pretrain.dataset.manifest import Manifest, read_manifest, weights_file
from pretrain.dataset.rows import sample_metadata
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


def weigh(directory: Path, options: WeighOptions) -> str:
    """Write the weights and the groups of a dataset; returns a table of the largest groups.

    ValueError or FileNotFoundError name what to change. Reads every sample's metadata, or its
    picture's embedding, once or twice.
    """
    path = weights_file(directory, options.out, "--out")
    manifest = read_manifest(directory)
    if options.file is not None:
        values = open_values(options.file, manifest.samples, f"--file={options.file}", given=True)
        write_weights(directory, options.out, manifest, values)
        return f"{path}: {values.sum(dtype=np.float64):,.0f} samples shown an epoch"
    groups, names = _chosen_groups(directory, manifest, options)
    sizes = np.bincount(groups)
    target = options.target or manifest.samples
    weights = _group_weights(sizes, options.alpha, target)
    write_weights(directory, options.out, manifest, weights[groups])
    write_concepts(directory, options.out, manifest, groups)
    return _table(path, names, sizes, weights)


def _group_weights(sizes: np.ndarray, alpha: float, target: int) -> np.ndarray:
    """(groups,) weight of a sample of each group of `sizes` samples.

    DynamiCS (arXiv 2604.27932): a group of n is shown n^alpha / sum(n^alpha) x target times an
    epoch, spread evenly over its samples.
    """
    shares = sizes.astype(np.float64) ** alpha
    return shares / shares.sum() * target / sizes


def _chosen_groups(
    directory: Path, manifest: Manifest, options: WeighOptions
) -> tuple[np.ndarray, list[str]]:
    """(number of each sample's group, the groups' names)."""
    if options.by is not None:
        return _groups(directory, manifest, options.by)
    assert options.clusters is not None and options.embeddings is not None  # checked together
    embeddings = open_embeddings(directory, manifest, options.embeddings)
    groups = cluster(embeddings, options.clusters, options.seed, options.starts)
    return groups, [f"cluster {number}" for number in range(int(groups.max()) + 1)]


def _groups(directory: Path, manifest: Manifest, column: str) -> tuple[np.ndarray, list[str]]:
    """(number of each sample's group, the groups' values as JSON)."""
    numbers: dict[str, int] = {}
    groups = np.empty(manifest.samples, np.int32)
    metadata = sample_metadata(directory, manifest)
    told = Bar(metadata, total=manifest.samples, unit="samples", what="weigh")
    for row, meta in enumerate(told):
        if column not in meta:
            raise ValueError(
                f"--by {column}: {directory} has no such metadata (sample {row}); choose one of "
                f"{sorted(meta)}"
            )
        value = json.dumps(meta[column], ensure_ascii=False, sort_keys=True)
        groups[row] = numbers.setdefault(value, len(numbers))
    return groups, list(numbers)


def _table(path: Path, names: list[str], sizes: np.ndarray, weights: np.ndarray) -> str:
    """What was written: the largest groups, how many samples they have, how many are shown."""
    shown = sizes * weights
    largest = np.argsort(-sizes, kind="stable")[:_SHOWN_GROUPS]
    lines = [
        ("group", "samples", "share", "shown", "share", "weight"),
        *(
            (
                *(names[group], f"{sizes[group]:,}", f"{sizes[group] / sizes.sum():.2%}"),
                *(f"{shown[group]:,.1f}", f"{shown[group] / shown.sum():.2%}"),
                f"{weights[group]:.4g}",
            )
            for group in largest
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
