"""From content ids to the context that a text tower reads: cut, special ids, padding."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.tokens.vocabulary import Vocabulary

Specials = Literal["bos", "eos", "bos_eos"]


def special_count(specials: Specials) -> int:
    """How many of a context's tokens are special."""
    return 2 if specials == "bos_eos" else 1


def add_specials(
    ids: NDArray[np.int64],
    lengths: NDArray[np.int64],
    specials: Specials,
    vocabulary: Vocabulary,
) -> NDArray[np.int64]:
    """(B, K) content ids, valid up to lengths (B,) → (B, K + specials) with bos and/or eos."""
    has_bos, has_eos = specials != "eos", specials != "bos"
    out = np.full((len(ids), ids.shape[1] + has_bos + has_eos), vocabulary.pad_id, np.int64)
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    out[:, has_bos : has_bos + ids.shape[1]] = np.where(valid, ids, vocabulary.pad_id)
    if has_bos:
        out[:, 0] = vocabulary.bos_id
    if has_eos:
        out[np.arange(len(ids)), lengths + has_bos] = vocabulary.eos_id
    return out


def context(
    texts: Sequence[NDArray[np.integer]], tokens: int, specials: Specials, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    """(B, tokens) of content ids: truncated, with special ids, padded."""
    keep = tokens - special_count(specials)
    ids = np.zeros((len(texts), keep), np.int64)
    lengths = np.asarray([min(len(text), keep) for text in texts], np.int64)
    for row, text in enumerate(texts):
        ids[row, : lengths[row]] = text[:keep]
    return add_specials(ids, lengths, specials, vocabulary)
