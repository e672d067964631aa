"""Position embeddings: fixed 2-D sin-cos, and resizing of learned tables."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.options import KEPT_TEXT_POSITIONS

# As in clipa_torch (after MAE, arXiv 2111.06377) and CLIPA JAX (after big_vision): integer grid
# coordinates, T = 10000, order [sin x, cos x, sin y, cos y]. Frequency exponents are k / (D/4) in
# clipa_torch, k / (D/4 - 1) in JAX.
_TEMPERATURE = 10_000.0


def sincos_2d(width: int, grid: int, *, jax: bool = False) -> Tensor:
    """Fixed position table (grid * grid, width) fp32, row by row, on integer coordinates.

    A larger picture gets the table of its own grid (the coordinates go on), it is not resized.
    jax: CLIPA JAX's frequencies instead of clipa_torch's. width: divisible by 4, which
    ImageTowerOptions checks.
    """
    count = width // 4
    steps = torch.arange(count, dtype=torch.float64) / (max(count - 1, 1) if jax else count)
    frequencies = _TEMPERATURE**-steps
    rows, columns = torch.meshgrid(
        torch.arange(grid, dtype=torch.float64),
        torch.arange(grid, dtype=torch.float64),
        indexing="ij",
    )
    x = columns.reshape(-1, 1) * frequencies
    y = rows.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def resize_image_positions(table: Tensor, grid: int, *, cls: bool = False) -> Tensor:
    """Learned table (N, D) of a square grid → (grid * grid, D), bicubic and antialiased, fp32.

    cls: one row more before the grid's, which is kept as it is.
    """
    if cls:
        return torch.cat([table[:1], resize_image_positions(table[1:], grid)])
    old = round(table.shape[0] ** 0.5)
    if old == grid:
        return table
    square = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1).reshape(grid * grid, -1)


def resize_text_positions(table: Tensor, tokens: int) -> Tensor:
    """Learned table (T, D) → (tokens, D), linear, fp32."""
    if table.shape[0] == tokens:
        return table
    return F.interpolate(table.float().T[None], size=tokens, mode="linear", align_corners=False)[
        0
    ].T


def stretch_tail_positions(table: Tensor, tokens: int) -> Tensor:
    """Learned table (T, D) → (tokens, D), fp32: the first 20 rows kept, the others stretched.

    A new row j behind them lies at 20 + (j - 20)(T - 20) / (tokens - 20) of the table, linear
    between two rows, and past the last one along the last two. 77 → 248 is a factor of 4, as in
    Long-CLIP (arXiv 2403.15378, load_from_clip); 248 → 77 gives the rows back. ValueError where
    the table is too short to stretch.
    """
    kept, rows = KEPT_TEXT_POSITIONS, len(table)
    if tokens == rows or tokens <= min(kept, rows):
        return table[:tokens]
    if rows < kept + 2:
        raise ValueError(
            f"model.text.positions_resize=stretch_tail from {rows} text tokens to {tokens}: it "
            f"keeps the first {kept} places and needs two more to stretch; choose interpolate, or "
            f"text_tokens of {kept + 2} or more before"
        )
    steps = torch.arange(tokens - kept, dtype=torch.float64, device=table.device)
    place = kept + steps * (rows - kept) / (tokens - kept)
    low = place.long().clamp(max=rows - 2)
    share = (place - low).float()[:, None]
    tail = torch.lerp(table[low].float(), table[low + 1].float(), share)
    return torch.cat([table[:kept].float(), tail])
