"""Zero-shot classification: pictures against the mean text embedding of each class."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 4096  # pictures compared at once
_Z95 = 1.959963984540054  # standard normal: 95 % lies within this
_BOOTSTRAP_DRAWS = 2000


def class_embeddings(text_features: Tensor, class_of_text: Tensor, classes: int) -> Tensor:
    """(C, E) unit vectors: the normalised mean of each class's texts (CLIP's prompt ensemble).

    text_features (m, E) unit norm, class_of_text (m,) in 0..C-1. A class without any text keeps a
    zero vector, so it is never predicted.
    """
    sums = text_features.new_zeros(classes, text_features.shape[1])
    return F.normalize(sums.index_add(0, class_of_text, text_features), dim=1)


def zero_shot(image_features: Tensor, class_of_image: Tensor, classifier: Tensor) -> dict[str, Any]:
    """Accuracy of image_features (n, E) against a classifier (C, E).

    top1, top5, mean_per_class_recall (over the classes that have pictures), each with its 95 %
    interval as NAME_ci95; classes, n, and largest_class: what always naming the commonest class
    gets.
    """
    classes = len(classifier)
    hits = torch.cat(
        [
            (rows @ classifier.T).topk(min(5, classes), dim=1).indices == own[:, None]
            for rows, own in zip(
                image_features.split(_CHUNK), class_of_image.split(_CHUNK), strict=True
            )
        ]
    )
    counts = torch.bincount(class_of_image, minlength=classes)
    right = torch.bincount(class_of_image[hits[:, 0]], minlength=classes)
    present = counts > 0
    n, top1, top5 = len(hits), int(hits[:, 0].sum()), int(hits.any(dim=1).sum())
    return {
        "top1": top1 / n,
        "top1_ci95": wilson_interval(top1, n),
        "top5": top5 / n,
        "top5_ci95": wilson_interval(top5, n),
        "mean_per_class_recall": float((right[present] / counts[present]).double().mean()),
        "mean_per_class_recall_ci95": bootstrap_interval(
            right[present].cpu().numpy(), counts[present].cpu().numpy()
        ),
        "classes": classes,
        "largest_class": float(counts.max() / n),
        "n": n,
    }


def wilson_interval(hits: int, n: int) -> list[float]:
    """95 % interval of a share of n trials (Wilson 1927, without continuity correction)."""
    share, z2 = hits / n, _Z95**2
    centre, spread = (
        share + z2 / (2 * n),
        _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)),
    )
    low, high = ((centre + sign * spread) / (1 + z2 / n) for sign in (-1, 1))
    return [max(0.0, low), min(1.0, high)]


def bootstrap_interval(right: NDArray[np.int64], counts: NDArray[np.int64]) -> list[float]:
    """95 % interval of the mean of right/counts (C,): percentiles of a seeded bootstrap that draws
    each class's pictures again; so many draws of hits and misses are one binomial draw."""
    draws = np.random.default_rng(0)
    means = [
        float((draws.binomial(counts, right / counts) / counts).mean())
        for _ in range(_BOOTSTRAP_DRAWS)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]
