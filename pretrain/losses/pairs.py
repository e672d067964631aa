"""Local rows × gathered columns, a chunk of columns at a time: what losses over all pairs share.

Forward and backward each make the logits of a chunk anew, so that no more than (B, chunk) of the
(B, G) logits ever exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# 128 MiB of logits at 8,192 rows; a product of this width already keeps a GPU busy, and with as
# many rows it costs more time than the row-wise sums of a chunk that a wider one would save.
CHUNK_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The logits of some columns, to be overwritten by whoever is given them."""

    start: int  # its first column
    columns: Tensor  # (C, E)
    logits: Tensor  # (B, C)
    own_rows: slice  # the rows whose own column is here
    own: Tensor  # (own rows,) their logits with it: a view into logits


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows, already scaled, against all columns; row i belongs to column first_own + i."""

    rows: Tensor  # (B, E)
    columns: Tensor  # (G, E)
    first_own: int
    chunk_samples: int

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of columns in order; the last may be narrower."""
        for start in range(0, len(self.columns), self.chunk_samples):
            columns = self.columns[start : start + self.chunk_samples]
            logits = self.rows @ columns.T
            first = max(start, self.first_own)
            stop = max(first, min(start + len(columns), self.first_own + len(self.rows)))
            own_rows = slice(first - self.first_own, stop - self.first_own)
            yield Chunk(
                start=start,
                columns=columns,
                logits=logits,
                own_rows=own_rows,
                own=logits[own_rows, first - start : stop - start].diagonal(),
            )

    def gradients(self, slopes: Callable[[Chunk], Tensor], factor: Tensor) -> tuple[Tensor, Tensor]:
        """factor × the loss's gradients at rows (B, E) and columns (G, E).

        slopes: a chunk's d loss / d logits (B, C).
        """
        rows = self.rows.new_zeros(self.rows.shape)
        columns = self.columns.new_empty(self.columns.shape)
        for chunk in self.chunks():
            slope = slopes(chunk)
            rows.addmm_(slope, chunk.columns)
            here = columns[chunk.start : chunk.start + len(chunk.columns)]
            torch.mm(slope.T, self.rows, out=here)
        return rows.mul_(factor), columns.mul_(factor)
