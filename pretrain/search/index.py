"""The nearest pictures of a dataset, by FAISS: exact up to a size, approximate above it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

# Up to here every picture is compared: with 512 numbers, 2 GB of memory.
EXACT_ROWS = 1_000_000
# Above: k-means lists by FAISS's rule of 4 to 16 √n, of which a query looks at one in PROBED. A
# text lies far from all pictures, so that its nearest are spread over more lists than a picture's.
_LISTS_FACTOR = 4
PROBED = 8
_FITTED_ROWS = 64  # a list; FAISS warns below 39

Blocks = Iterable[tuple[int, NDArray[np.floating]]]


def build_index(blocks: Callable[[], Blocks], rows: int, dimension: int) -> faiss.Index:
    """An inner-product index of rows (rows, dimension), given as (first row, vectors) blocks.

    blocks is called once more where the approximate index needs rows to be fitted on; that one
    holds float16, as the embeddings on the disk.
    """
    if rows <= EXACT_ROWS:
        index: Any = faiss.IndexFlatIP(dimension)
    else:
        lists = _LISTS_FACTOR * math.isqrt(rows)
        index = faiss.index_factory(dimension, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.train(space_vectors(blocks(), rows, min(rows, lists * _FITTED_ROWS)))
        index.nprobe = max(lists // PROBED, 1)
    for _, vectors in blocks():
        index.add(vectors.astype(np.float32))
    return index


def nearest(index: faiss.Index, query: NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """(row, cosine) of the `top` nearest to a unit vector (dimension,), best first."""
    scores, rows = index.search(query[None], min(top, index.ntotal))
    pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
    return [(row, score) for row, score in pairs if row >= 0]  # -1: the probed lists hold fewer


def space_vectors(blocks: Blocks, rows: int, count: int) -> NDArray[np.float32]:
    """(count, dimension) of evenly spaced rows."""
    wanted = np.arange(count, dtype=np.int64) * rows // count
    parts = []
    for first, vectors in blocks:
        low, high = np.searchsorted(wanted, (first, first + len(vectors)))
        parts.append(vectors[wanted[low:high] - first].astype(np.float32))
    return np.concatenate(parts)
