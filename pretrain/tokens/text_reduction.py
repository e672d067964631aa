"""Which text tokens a training step keeps: truncate, random, block, syntax, frequency, sentence.

All are one algorithm: give each token a priority, keep the K lowest, restore the original order.
So they are vectorised over the batch, seeded, and leave a caption that fits untouched.
Sources: arXiv 2305.07017, section 3.2; frequency: arXiv 2412.16148 (CLIPF).
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pretrain.tokens.word_classes import SENTENCE_START
from pretrain.tokens.word_edges import SPACE, WORD_BEGINS, WORD_ENDS

TextReduction = Literal["truncate", "random", "block", "syntax", "frequency", "sentence"]


def reduce_tokens(
    reduction: TextReduction,
    ids: NDArray[np.int64],
    classes: NDArray[np.int64],
    lengths: NDArray[np.int64],
    keep: int,
    draws: NDArray[np.float64],
    counts: NDArray[np.integer] | None = None,
    edges: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep at most `keep` content tokens of each caption, in their original order.

    ids, classes (B, L): token ids and class bytes, valid up to lengths (B,); draws (B, L)
    uniform in [0, 1); counts (V,): how often each id occurs in the dataset, for frequency alone;
    edges (V,): flags of word_edges, with which syntax ranks words instead of tokens.
    Returns (ids (B, keep), lengths (B,)); what lies past a length is 0.

    block keeps a contiguous run, its start drawn uniformly over all that fit. syntax keeps nouns,
    then adjectives, then verbs, then the rest; equals are taken from the left. By words it is
    clipa_torch's: the `keep` first words of that order, in their place, and of their tokens the
    `keep` first; a word has the class of its first token.

    frequency: CLIPF masks a word of frequency f with probability 1 - sqrt(t / f), here a token.
    With a draw u in [0, 1) a token stays where u * sqrt(f) < sqrt(t); keeping the K lowest of
    u * sqrt(f) is that rule at the threshold t at which K tokens stay.

    sentence keeps what follows from the first token of a sentence, which is drawn uniformly among
    the caption's, up to the caption's end: fewer than `keep` tokens where the end is nearer.
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
    elif reduction == "syntax" and edges is not None:
        chosen = _words_by_class(ids, classes, valid, edges, keep)
        priority = np.where(chosen, place, place + ids.shape[1]).astype(np.float64)
    elif reduction == "syntax":
        priority = (classes & ~SENTENCE_START).astype(np.float64)
    elif reduction == "frequency" and counts is not None:
        priority = draws * np.sqrt(counts[ids])
    elif reduction == "sentence":
        start = _sentence_start(classes, valid, draws[:, 0])
        start = np.where(lengths > keep, start, 0)[:, None]
        valid &= place >= start
        kept_lengths = np.minimum(valid.sum(axis=1), keep)
        priority = np.broadcast_to(place, ids.shape).astype(np.float64)
    else:
        raise ValueError(
            f"text_reduction={reduction!r} asked for: choose one of {get_args(TextReduction)}, "
            "frequency with the dataset's counts of its ids"
        )
    priority = np.where(valid, priority, np.inf)
    order = np.argsort(priority, axis=1, kind="stable")[:, :keep]
    # What lies past a short caption's end sorts behind every valid place.
    order = np.sort(np.where(np.take_along_axis(valid, order, 1), order, ids.shape[1]), axis=1)
    kept = np.take_along_axis(ids, np.minimum(order, ids.shape[1] - 1), 1)
    out = np.zeros((len(ids), keep), np.int64)
    out[:, : kept.shape[1]] = np.where(order < ids.shape[1], kept, 0)
    return out, kept_lengths


def _words_by_class(
    ids: NDArray[np.int64],
    classes: NDArray[np.int64],
    valid: NDArray[np.bool_],
    edges: NDArray[np.uint8],
    keep: int,
) -> NDArray[np.bool_]:
    """(B, L) whether a token is of one of the `keep` words that syntax puts first."""
    begins, before = edges[ids] & WORD_BEGINS > 0, edges[ids[:, :-1]]
    begins[:, 1:] = (begins[:, 1:] | (before & WORD_ENDS > 0)) & (before & SPACE == 0)
    begins[:, 0] = True
    of_words = np.where(begins & valid, classes & ~SENTENCE_START, SENTENCE_START)
    chosen = np.zeros_like(begins)
    np.put_along_axis(chosen, np.argsort(of_words, axis=1, kind="stable")[:, :keep], True, axis=1)
    start = np.maximum.accumulate(np.where(begins, np.arange(ids.shape[1]), 0), axis=1)
    return np.take_along_axis(chosen, start, axis=1)


def _sentence_start(
    classes: NDArray[np.int64], valid: NDArray[np.bool_], draw: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(B,) place of one of each caption's sentence starts; a caption always has its first."""
    starts = valid & (classes & SENTENCE_START > 0)
    starts[:, 0] = True
    chosen = (draw * starts.sum(axis=1)).astype(np.int64)
    return (np.cumsum(starts, axis=1) > chosen[:, None]).argmax(axis=1)
