"""What each token reduction keeps of one picture and of one caption, by training's own reducers."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pretrain.tokens.image_reduction import ImageReduction, draws_needed, keep_index
from pretrain.tokens.text_reduction import TextReduction, reduce_tokens
from pretrain.tokens.word_classes import SENTENCE_START

IMAGE_PX, PATCH_PX = 224, 16
GRID = IMAGE_PX // PATCH_PX
KEEP_TOKENS = (GRID // 2) ** 2  # a quarter, which every way can keep
TEXT_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class _KeptPatches:
    """One way of keeping a quarter of a picture's tokens."""

    name: str
    grid: int  # patches on a side
    kept: list[int]  # numbers of the patches that are kept, row by row

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """(column, row) of the others."""
        places = set(range(self.grid**2)) - set(self.kept)
        return [(place % self.grid, place // self.grid) for place in sorted(places)]


def kept_patches() -> list[_KeptPatches]:
    """All tokens, then each reduction: resize first, whose tokens are larger."""
    draws = np.random.default_rng(0)
    found: list[_KeptPatches] = []
    for name in get_args(ImageReduction):
        needed = draws_needed(name, GRID)
        keep = None if name in ("none", "grid") else KEEP_TOKENS
        index = keep_index(name, GRID, keep, draws.random((1, needed)))
        kept = list(range(GRID**2)) if index is None else index[0].tolist()
        found.append(_KeptPatches(name=name, grid=GRID, kept=kept))
    small = _KeptPatches(name="resize", grid=GRID // 2, kept=list(range(KEEP_TOKENS)))
    return [found[0], small, *found[1:]]


def kept_tokens(
    ids: NDArray[np.int64], classes: NDArray[np.int64], counts: NDArray[np.uint64]
) -> dict[str, list[int]]:
    """Places of the tokens that each text reduction keeps of a caption, TEXT_TOKENS at most.

    ids, classes: (L,). counts: (V,) how often each id occurs.
    """
    # The reducers answer with ids. Given places instead, with the counts of each place's id, they
    # decide the same and answer with places.
    places = np.arange(len(ids), dtype=np.int64)[None]
    draws = np.random.default_rng(0).random((1, len(ids)))
    lengths = np.asarray([len(ids)], np.int64)
    found: dict[str, list[int]] = {}
    for name in get_args(TextReduction):
        kept, (length,) = reduce_tokens(
            name, places, classes[None], lengths, TEXT_TOKENS, draws, counts[ids]
        )
        found[name] = kept[0, :length].tolist()
    return found


def sentences(classes: NDArray[np.int64]) -> int:
    """How many sentences a caption's classes mark."""
    return int(np.count_nonzero(classes & SENTENCE_START))
