"""Which text tokens a training step keeps: truncate, random, block and syntax.

All four are one algorithm: give each token a priority, keep the K lowest, restore the original
order. So they are vectorised over the batch, seeded, and leave a caption that fits untouched.
Source: arXiv 2305.07017, section 3.2.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

TextReduction = Literal["truncate", "random", "block", "syntax"]


def reduce_tokens(
    reduction: TextReduction,
    ids: NDArray[np.int64],
    classes: NDArray[np.int64],
    lengths: NDArray[np.int64],
    keep: int,
    draws: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep at most `keep` content tokens of each caption, in their original order.

    ids, classes (B, L): token ids and word classes, valid up to lengths (B,); draws (B, L)
    uniform in [0, 1). Returns (ids (B, keep), lengths (B,)); what lies past a length is 0.
    block keeps a contiguous run, its start drawn uniformly over all that fit. syntax keeps nouns,
    then adjectives, then verbs, then the rest; equals are taken from the left.
    """
    place = np.arange(ids.shape[1])[None, :]
    valid = place < lengths[:, None]
    kept_lengths = np.minimum(lengths, keep)
    if reduction == "truncate":
        priority = np.broadcast_to(place, ids.shape).astype(np.float64)
    elif reduction == "random":
        priority = draws.astype(np.float64)
    elif reduction == "block":
        starts = np.maximum(lengths - keep + 1, 1)
        start = (draws[:, :1] * starts[:, None]).astype(np.int64)
        priority = np.where(place >= start, place - start, place + ids.shape[1]).astype(np.float64)
    elif reduction == "syntax":
        priority = classes.astype(np.float64)
    else:
        raise ValueError(
            f"text_reduction={reduction!r} asked for: choose truncate, random, block or syntax"
        )
    priority = np.where(valid, priority, np.inf)
    order = np.argsort(priority, axis=1, kind="stable")[:, :keep]
    # What lies past a short caption's end sorts behind every valid place.
    order = np.sort(np.where(np.take_along_axis(valid, order, 1), order, ids.shape[1]), axis=1)
    kept = np.take_along_axis(ids, np.minimum(order, ids.shape[1] - 1), 1)
    out = np.zeros((len(ids), keep), np.int64)
    out[:, : kept.shape[1]] = np.where(order < ids.shape[1], kept, 0)
    return out, kept_lengths
