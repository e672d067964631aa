"""Groups of samples whose pictures are alike: spherical k-means over embeddings, by FAISS."""

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.embeddings import Embeddings

_ITERATIONS = 25
# Rows a cluster that the centroids are fitted on, FAISS's own default: with 10,000 clusters of 512
# numbers, 5 GB of memory, however large the dataset is.
_FITTED_ROWS = 256


def cluster(embeddings: Embeddings, clusters: int, seed: int, starts: int) -> NDArray[np.int64]:
    """(samples,) number of each sample's cluster, 0…n-1 by size, the largest first.

    The best of `starts` fits from other k-means++ centres (Arthur and Vassilvitskii, 2007): from
    random centres large groups are split and small ones merged. n is `clusters`, or less where
    some end empty. The same on one machine for the same seed.
    ValueError where there are fewer samples than clusters.
    """
    import faiss  # loads OpenMP and BLAS, which no other command needs

    samples = sum(embeddings.info.shard_samples)
    if clusters > samples:
        raise ValueError(f"--clusters={clusters}: there are {samples} samples; ask for fewer")
    kmeans = faiss.Kmeans(
        embeddings.info.dimension,
        clusters,
        niter=_ITERATIONS,
        nredo=starts,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        spherical=True,
        min_points_per_centroid=1,  # small datasets are no mistake
        max_points_per_centroid=_FITTED_ROWS,
    )
    kmeans.train(_take_rows(embeddings, min(samples, clusters * _FITTED_ROWS)))
    found = np.empty(samples, np.int64)
    for first, vectors in embeddings.shards("image"):
        _, nearest = kmeans.index.search(vectors.astype(np.float32), 1)
        found[first : first + len(vectors)] = nearest[:, 0]
    sizes = np.bincount(found, minlength=clusters)
    places = np.empty(clusters, np.int64)
    places[np.argsort(-sizes, kind="stable")] = np.arange(clusters)
    numbered: NDArray[np.int64] = places[found]
    return numbered


def _take_rows(embeddings: Embeddings, count: int) -> NDArray[np.float32]:
    """(count, dimension) of evenly spaced rows."""
    samples = sum(embeddings.info.shard_samples)
    wanted = np.arange(count, dtype=np.int64) * samples // count
    parts = []
    for first, vectors in embeddings.shards("image"):
        low, high = np.searchsorted(wanted, (first, first + len(vectors)))
        parts.append(vectors[wanted[low:high] - first].astype(np.float32))
    return np.concatenate(parts)
