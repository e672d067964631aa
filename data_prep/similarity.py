"""Weights that leave out the samples whose picture and text a model finds least alike.

CLIP-score filtering: LAION-400M (arXiv 2111.02114); DataComp (arXiv 2304.14108) keeps 30 %.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.reading import base_weights, smallest_tier
from data_prep.writer import array_file
from pretrain.data.embeddings import Embeddings, open_embeddings
from pretrain.files import write_durably
from pretrain.shard_format import Manifest, read_manifest, weights_file

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
_SHOWN_CAPTIONS = 5
_SHOWN_CHARS = 90


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Which samples are left out"""

    embeddings: str
    """Name of the embeddings: DIR/embeddings/NAME, which `data_prep embed` writes."""
    similarity_quantile: float
    """Share of the samples that get weight 0: those with the lowest cosine of picture and text."""
    out: str
    """Name of the weights: DIR/weights/NAME.npy, which training reads by data.weights=NAME."""
    weights: str | None = None
    """Name of weights that those of the kept samples are taken from. Null: 1 for each."""

    def __post_init__(self) -> None:
        if not 0 < self.similarity_quantile < 1:
            raise ValueError(
                f"--similarity-quantile={self.similarity_quantile}: it must lie between 0 and 1"
            )


def filter_by_similarity(directory: Path, options: FilterOptions) -> str:
    """Write the weights; returns the scores' quantiles and the captions at both ends.

    Samples without the embedded caption have no score and keep their weight.
    """
    path = weights_file(directory, options.out, "--out")
    manifest = read_manifest(directory)
    embeddings = open_embeddings(directory, manifest, options.embeddings)
    weights = base_weights(directory, options.weights, manifest).copy()
    scores = similarities(embeddings)
    ascending = np.argsort(scores, kind="stable")  # of equal scores the lower row first; NaN last
    scored = ascending[: np.count_nonzero(~np.isnan(scores))]
    dropped = scored[: round(options.similarity_quantile * len(scored))]
    weights[dropped] = 0
    if not weights.any():
        raise ValueError(
            f"--weights={options.weights!r}: no sample that it shows is kept; lower "
            f"--similarity-quantile={options.similarity_quantile} or leave --weights out"
        )
    report = _report(directory, manifest, embeddings, scores, scored)
    write_durably(path, array_file(weights))
    shown = float(weights.sum(dtype=np.float64))
    cut = f", all below or at {scores[dropped[-1]]:.4f}" if len(dropped) else ""
    unscored = manifest.samples - len(scored)
    return (
        f"{report}\n{path}: {len(dropped):,} of {manifest.samples:,} samples get weight 0{cut}; "
        f"{unscored:,} have no score and keep theirs; {shown:,.0f} shown an epoch"
    )


def similarities(embeddings: Embeddings) -> NDArray[np.float64]:
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


def _report(
    directory: Path,
    manifest: Manifest,
    embeddings: Embeddings,
    scores: NDArray[np.float64],
    scored: NDArray[np.int64],
) -> str:
    """Quantiles, and the captions of the lowest and the highest scores."""
    lines = [f"{'quantile':<12}cosine"]
    values = np.quantile(scores[scored], QUANTILES).tolist() if len(scored) else []
    lines += [f"{at:<12g}{value:.4f}" for at, value in zip(QUANTILES, values, strict=False)]
    for name, rows in (
        ("lowest", scored[:_SHOWN_CAPTIONS]),
        ("highest", scored[::-1][:_SHOWN_CAPTIONS]),
    ):
        texts = _captions(directory, manifest, embeddings.info.caption, rows)
        lines += [f"{name:<12}{scores[row]:.4f}  {texts[row]}" for row in rows.tolist()]
    return "\n".join(lines)


def _captions(
    directory: Path, manifest: Manifest, caption: str | None, rows: NDArray[np.int64]
) -> dict[int, str]:
    """row -> the text that was embedded, cut to a line."""
    ordered = np.sort(rows)
    member = "txt" if caption is None else "json"
    texts: dict[int, str] = {}
    contents = smallest_tier(directory, manifest).read(ordered, (member,))
    for row, (words,) in zip(ordered.tolist(), contents, strict=True):
        text = words.decode() if caption is None else json.loads(words)["captions"][caption]
        texts[row] = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + " …"
    return texts
