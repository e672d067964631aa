"""Pictures that a model finds nearly the same: SemDeDup (arXiv 2303.09540) over embeddings.

Only pictures of one k-means cluster are compared. With as many clusters as the root of the samples,
finding each sample's cluster and comparing it within take equally many products, so the cost grows
as n^1.5; a pair that two clusters part is missed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup import NOBODY
from data_prep.similarity.clusters import cluster
from pretrain.dataset.embeddings import Embeddings

_BLOCK = 1024  # rows compared at once with all that follow, fewer in a large cluster:
_PRODUCTS = 1 << 26  # so many cosines are held
_HELD_BYTES = 1 << 30  # of vectors in memory; one cluster may need more


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What is left out for what."""

    keeper: NDArray[np.int64]  # (samples,) the row kept in place of this one, or NOBODY
    cosine: NDArray[np.float32]  # (samples,) to the keeper; 0 without one


def semantic_repeats(
    embeddings: Embeddings,
    wanted: NDArray[np.bool_],
    preference: NDArray[np.float64],
    cosine: float,
    clusters: int | None,
    seed: int,
) -> Repeats:
    """Of each cluster's `wanted` rows, by falling `preference` (a tie: the earlier row first), one
    is left out if its cosine to one that is kept is `cosine` or more: to the first such one.

    So each row left out is near one that stays. `clusters`: None for the root of the samples.
    """
    samples = len(wanted)
    groups = cluster(embeddings, clusters or max(1, math.isqrt(samples)), seed, starts=1)
    rows = np.flatnonzero(wanted)
    rows = rows[np.lexsort((-preference[rows], groups[rows]))]
    found = Repeats(keeper=np.full(samples, NOBODY, np.int64), cosine=np.zeros(samples, np.float32))
    edges = np.flatnonzero(np.diff(groups[rows], prepend=-1, append=-1))
    for some in _held_together(edges, _HELD_BYTES // (4 * embeddings.info.dimension)):
        vectors = _gather(embeddings, rows[some[0] : some[-1]])
        for first, stop in zip(some[:-1].tolist(), some[1:].tolist(), strict=True):
            here = vectors[first - some[0] : stop - some[0]]
            keeper, near = _repeats_of_one(here, cosine)
            repeats = keeper != NOBODY
            found.keeper[rows[first:stop][repeats]] = rows[first:stop][keeper[repeats]]
            found.cosine[rows[first:stop][repeats]] = near[repeats]
    return found


def _held_together(edges: NDArray[np.int64], limit: int) -> list[NDArray[np.int64]]:
    """Borders of neighbouring clusters of at most `limit` rows together, or of one larger one."""
    parts: list[NDArray[np.int64]] = []
    at = 0
    while at < len(edges) - 1:
        stop = max(at + 1, int(np.searchsorted(edges, edges[at] + limit, side="right")) - 1)
        parts.append(edges[at : stop + 1])
        at = stop
    return parts


def _gather(embeddings: Embeddings, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(rows, dimension) of pictures, of length 1."""
    order = np.argsort(rows)
    ascending = rows[order]
    gathered = np.empty((len(rows), embeddings.info.dimension), np.float32)
    for first, vectors in embeddings.shards("image"):
        low, high = np.searchsorted(ascending, (first, first + len(vectors)))
        if low < high:
            gathered[order[low:high]] = vectors[ascending[low:high] - first]
    lengths = np.linalg.norm(gathered, axis=1, keepdims=True)  # float16 rounds them
    gathered /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return gathered


def _repeats_of_one(
    vectors: NDArray[np.float32], cosine: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n,) the row of (n, dimension) that stands for each, or NOBODY, and the cosine to it."""
    keeper = np.full(len(vectors), NOBODY, np.int64)
    near = np.zeros(len(vectors), np.float32)
    rows = max(1, min(_BLOCK, _PRODUCTS // max(1, len(vectors))))
    for first in range(0, len(vectors), rows):
        block = vectors[first : first + rows]
        products = block @ vectors[first:].T
        for place in np.flatnonzero((products >= cosine).sum(axis=1) > 1).tolist():
            if keeper[first + place] != NOBODY:
                continue
            later = products[place, place + 1 :]
            hits = np.flatnonzero((later >= cosine) & (keeper[first + place + 1 :] == NOBODY))
            keeper[first + place + 1 + hits] = first + place
            near[first + place + 1 + hits] = later[hits]
    return keeper, near
