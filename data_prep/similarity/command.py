"""Weights that leave out the samples whose picture and text a model finds least alike, and those
whose picture it finds nearly the same as another's.

CLIP-score filtering: LAION-400M (arXiv 2111.02114); DataComp (arXiv 2304.14108) keeps 30 %.
Semantic near duplicates: SemDeDup (arXiv 2303.09540).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup import NOBODY
from data_prep.dedup.semantic import Repeats, semantic_repeats
from data_prep.similarity.left_out import ShownDataset, check_page
from data_prep.similarity.page import write_page
from pretrain.base.checks import check_positive
from pretrain.dataset.embeddings import Embeddings, open_embeddings
from pretrain.dataset.manifest import Manifest, read_manifest, weights_file
from pretrain.dataset.rows import base_weights, text_tier
from pretrain.dataset.sample_weights import write_weights

_QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
_SHOWN_CAPTIONS = 5
_SHOWN_CHARS = 90


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Which samples are left out"""

    embeddings: str
    """Name of the embeddings: DIR/embeddings/NAME, which `data_prep embed` writes."""
    similarity_quantile: float | None = None
    """Share of the samples that get weight 0: those with the lowest cosine of picture and text.
    Give this, `duplicate_cosine` or both."""
    duplicate_cosine: float | None = None
    """Of pictures whose cosine is at least this, the one that its text fits best is kept; the
    others get weight 0."""
    clusters: int | None = None
    """Near duplicates are sought within so many k-means clusters of the pictures, where more find
    fewer, faster. Null: the root of the samples."""
    seed: int = 0
    """Of the clusters' first centres and of the page's random selection."""
    page: Path | None = None
    """HTML file that shows some of what is left out and kept. Null: none."""
    out: str
    """Name of the weights: DIR/weights/NAME.npy, which training reads by data.weights=NAME."""
    weights: str | None = None
    """Name of weights that those of the kept samples are taken from. Null: 1 for each."""

    def __post_init__(self) -> None:
        if self.similarity_quantile is None and self.duplicate_cosine is None:
            raise ValueError("give --similarity-quantile, --duplicate-cosine or both")
        for name, value in (
            ("--similarity-quantile", self.similarity_quantile),
            ("--duplicate-cosine", self.duplicate_cosine),
        ):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}={value}: it must lie between 0 and 1")
        check_positive({"--clusters": self.clusters})
        check_page(self.page)
        if self.clusters is not None and self.duplicate_cosine is None:
            raise ValueError(f"--clusters={self.clusters} goes with --duplicate-cosine only")


def filter_by_similarity(directory: Path, options: FilterOptions) -> str:
    """Write the weights; returns the scores' quantiles, the captions at both ends, and the pairs of
    near duplicates that are the least alike.

    Samples without the embedded caption have no score: none is left out for it, and of near
    duplicates they are kept last.
    """
    path = weights_file(directory, options.out, "--out")
    manifest = read_manifest(directory)
    embeddings = open_embeddings(directory, manifest, options.embeddings)
    weights = base_weights(directory, options.weights, manifest).copy()
    scores = _similarities(embeddings)
    shown, told = _drop_lowest(directory, manifest, embeddings, scores, weights, options)
    found = _repeats(embeddings, scores, weights, options)
    pairs, more = _drop_repeats(directory, manifest, embeddings, found, weights)
    write_weights(directory, options.out, manifest, weights)
    left = float(weights.sum(dtype=np.float64))
    summary = [*told, *more, f"{path}: {left:,.0f} of {manifest.samples:,} samples shown an epoch"]
    report = [*shown, *told, *pairs, *more, summary[-1]]
    if options.page is not None:
        source = ShownDataset(
            directory=directory, manifest=manifest, caption=embeddings.info.caption
        )
        write_page(options.page, source, scores, weights, found, summary, options.seed)
        report.append(f"{options.page}: what is left out, to look at")
    return "\n".join(report)


def _drop_lowest(
    directory: Path,
    manifest: Manifest,
    embeddings: Embeddings,
    scores: NDArray[np.float64],
    weights: NDArray[np.float32],
    options: FilterOptions,
) -> tuple[list[str], list[str]]:
    """Set the weights of the lowest scores to 0; returns what the scores are, and what it did."""
    if options.similarity_quantile is None:
        return [], []
    ascending = np.argsort(scores, kind="stable")  # of equal scores the lower row first; NaN last
    scored = ascending[: np.count_nonzero(~np.isnan(scores))]
    dropped = scored[: round(options.similarity_quantile * len(scored))]
    weights[dropped] = 0
    if not weights.any():
        raise ValueError(
            f"--weights={options.weights!r}: no sample that it shows is kept; lower "
            f"--similarity-quantile={options.similarity_quantile} or leave --weights out"
        )
    cut = f", all below or at {scores[dropped[-1]]:.4f}" if len(dropped) else ""
    unscored = manifest.samples - len(scored)
    return _quantiles(directory, manifest, embeddings, scores, scored), [
        f"{len(dropped):,} of {manifest.samples:,} samples get weight 0 for their text{cut}; "
        f"{unscored:,} have no score and keep theirs",
    ]


def _repeats(
    embeddings: Embeddings,
    scores: NDArray[np.float64],
    weights: NDArray[np.float32],
    options: FilterOptions,
) -> Repeats | None:
    """Near duplicates among what is left; None if they are not asked for."""
    if options.duplicate_cosine is None:
        return None
    return semantic_repeats(
        embeddings,
        weights > 0,
        np.nan_to_num(scores, nan=-np.inf),
        options.duplicate_cosine,
        options.clusters,
        options.seed,
    )


def _drop_repeats(
    directory: Path,
    manifest: Manifest,
    embeddings: Embeddings,
    found: Repeats | None,
    weights: NDArray[np.float32],
) -> tuple[list[str], list[str]]:
    """Set the weights of near duplicates to 0; returns the least alike pairs, and what it did."""
    if found is None:
        return [], []
    repeats = np.flatnonzero(found.keeper != NOBODY)
    weights[repeats] = 0
    least = repeats[np.argsort(found.cosine[repeats], kind="stable")[:_SHOWN_CAPTIONS]]
    rows = np.unique(np.concatenate([least, found.keeper[least]]))
    texts = _captions(directory, manifest, embeddings.info.caption, rows)
    keepers = len(np.unique(found.keeper[repeats]))
    pairs = [
        f"{'duplicates':<12}{found.cosine[row]:.4f}  {texts[row]}  |  kept: "
        f"{texts[int(found.keeper[row])]}"
        for row in least.tolist()
    ]
    return pairs, [
        f"{len(repeats):,} of {manifest.samples:,} samples get weight 0 as near duplicates of "
        f"{keepers:,} others"
    ]


def _similarities(embeddings: Embeddings) -> NDArray[np.float64]:
    """(samples,) cosine of picture and text; NaN without a text."""
    scores = np.full(sum(embeddings.info.shard_samples), np.nan)
    for (first, image), (_, text) in zip(
        embeddings.shards("image"), embeddings.shards("text"), strict=True
    ):
        pictures, texts = image.astype(np.float64), text.astype(np.float64)
        # float16 rounds the vectors' lengths too
        lengths = np.linalg.norm(pictures, axis=1) * np.linalg.norm(texts, axis=1)
        having = texts.any(axis=1)
        dots = np.einsum("ne,ne->n", pictures, texts)
        scores[first : first + len(dots)][having] = dots[having] / lengths[having]
    return scores


def _quantiles(
    directory: Path,
    manifest: Manifest,
    embeddings: Embeddings,
    scores: NDArray[np.float64],
    scored: NDArray[np.int64],
) -> list[str]:
    """Quantiles, and the captions of the lowest and the highest scores."""
    lines = [f"{'quantile':<12}cosine"]
    values = np.quantile(scores[scored], _QUANTILES).tolist() if len(scored) else []
    lines += [f"{at:<12g}{value:.4f}" for at, value in zip(_QUANTILES, values, strict=False)]
    for name, rows in (
        ("lowest", scored[:_SHOWN_CAPTIONS]),
        ("highest", scored[::-1][:_SHOWN_CAPTIONS]),
    ):
        texts = _captions(directory, manifest, embeddings.info.caption, rows)
        lines += [f"{name:<12}{scores[row]:.4f}  {texts[row]}" for row in rows.tolist()]
    return lines


def _captions(
    directory: Path, manifest: Manifest, caption: str | None, rows: NDArray[np.int64]
) -> dict[int, str]:
    """row -> the text that was embedded, cut to a line; "" without one."""
    ordered = np.sort(rows)
    member = "txt" if caption is None else "json"
    texts: dict[int, str] = {}
    contents = text_tier(directory, manifest).members(ordered, (member,))
    for row, (words,) in zip(ordered.tolist(), contents, strict=True):
        text = words.decode() if caption is None else json.loads(words)["captions"].get(caption, "")
        texts[row] = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + " …"
    return texts
