"""Which image tokens a training step keeps: random, grid and block masks.

The fourth way, resize, needs no mask: the picture is decoded at a smaller `image_px` and all its
tokens are kept (CLIPA's winner: arXiv 2305.07017, table 2). Masks index the patch tokens only;
CLS is always kept and never counted.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

ImageReduction = Literal["none", "random", "grid", "block"]


def kept_count(reduction: ImageReduction, grid: int, keep_tokens: int | None) -> int:
    """Number K of patch tokens kept of a grid × grid picture; ValueError where it cannot be."""
    total = grid * grid
    if reduction == "none":
        if keep_tokens not in (None, total):
            raise ValueError(
                f"image_keep_tokens={keep_tokens} but image_reduction=none keeps all {total} "
                "tokens: choose image_reduction random, grid or block, or drop image_keep_tokens"
            )
        return total
    if reduction == "grid":
        cells = ((grid + 1) // 2) ** 2
        if keep_tokens not in (None, cells):
            raise ValueError(
                f"image_keep_tokens={keep_tokens} but image_reduction=grid keeps one token per "
                f"2x2 cell, {cells} of {total}: set image_keep_tokens to {cells} or leave it out"
            )
        return cells
    if keep_tokens is None or not 1 <= keep_tokens <= total:
        raise ValueError(
            f"image_reduction={reduction} needs image_keep_tokens between 1 and {total} "
            f"(image of {grid}x{grid} patches), found {keep_tokens}"
        )
    if reduction == "block":
        block_shape(grid, keep_tokens)
    return keep_tokens


def block_shape(grid: int, keep_tokens: int) -> tuple[int, int]:
    """(height, width) in patches of the block of keep_tokens patches that is nearest a square."""
    shapes = [
        (height, keep_tokens // height)
        for height in range(1, grid + 1)
        if keep_tokens % height == 0 and keep_tokens // height <= grid
    ]
    if not shapes:
        raise ValueError(
            f"image_keep_tokens={keep_tokens} does not fit a rectangle inside {grid}x{grid} "
            "patches: choose a product of two numbers that are each at most the grid side"
        )
    return min(shapes, key=lambda shape: abs(shape[0] - shape[1]))


def keep_index(
    reduction: ImageReduction, grid: int, keep_tokens: int | None, draws: NDArray[np.float64]
) -> NDArray[np.int64] | None:
    """Sorted, unique patch indices (B, K) that each picture keeps; None where all are kept.

    draws (B, D) uniform in [0, 1), D at least `draws_needed`. random: a uniform subset (FLIP,
    arXiv 2212.00794); grid: one patch in each 2x2 cell, its place drawn per cell; block: one
    contiguous rectangle, its corner drawn uniformly over all that fit.
    """
    kept = kept_count(reduction, grid, keep_tokens)
    if reduction == "none":
        return None
    if reduction == "random":
        chosen = np.argpartition(draws[:, : grid * grid], kept - 1, axis=1)[:, :kept]
        return np.sort(chosen, axis=1)
    if reduction == "grid":
        return _grid_index(grid, draws)
    height, width = block_shape(grid, kept)
    top = (draws[:, 0] * (grid - height + 1)).astype(np.int64)
    left = (draws[:, 1] * (grid - width + 1)).astype(np.int64)
    inside = (np.arange(height)[:, None] * grid + np.arange(width)[None, :]).reshape(1, -1)
    return (top * grid + left)[:, None] + inside


def _grid_index(grid: int, draws: NDArray[np.float64]) -> NDArray[np.int64]:
    cells = (grid + 1) // 2
    corner = np.arange(cells) * 2
    size = np.minimum(2, grid - corner)  # the last cell of an odd grid is one patch wide
    picks = draws[:, : 2 * cells * cells].reshape(len(draws), 2, cells, cells)
    rows = corner[:, None] + (picks[:, 0] * size[:, None]).astype(np.int64)
    columns = corner[None, :] + (picks[:, 1] * size[None, :]).astype(np.int64)
    return np.sort((rows * grid + columns).reshape(len(draws), -1), axis=1)


def draws_needed(reduction: ImageReduction, grid: int) -> int:
    """Uniform draws per picture that `keep_index` reads."""
    cells = (grid + 1) // 2
    return {"none": 0, "random": grid * grid, "grid": 2 * cells * cells, "block": 2}[reduction]
