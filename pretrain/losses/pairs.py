"""Local pictures × gathered texts, a chunk of texts at a time: what losses over all pairs share.

Each pair of the global batch is computed once, by the rank of its picture, so only texts are
gathered. Forward and backward each make the logits of a chunk anew, so that no more than a few
(B, chunk) of the (B, G) logits ever exist.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# 128 MiB of logits at 8,192 rows; a product of this width already keeps a GPU busy, and with as
# many rows it costs more time than the row-wise sums of a chunk that a wider one would save.
CHUNK_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The logits of some columns, to be overwritten by whoever is given them."""

    here: slice  # of all columns
    columns: Tensor  # (C, E)
    logits: Tensor  # (B, C)
    own_rows: slice  # the rows whose own column is here
    own_columns: slice  # and which columns these are, of all
    own: Tensor  # (own rows,) their logits with it: a view into logits


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which column is a row's own, and how the products are made."""

    first_own: int  # the column of row 0; that of row i is first_own + i
    chunk_samples: int
    tf32: bool  # on a GPU: gradients are 2e-4 to 6e-4 apart, where bf16 features cost 2e-3 and more


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows, already scaled, against all columns."""

    rows: Tensor  # (B, E)
    columns: Tensor  # (G, E)
    layout: Layout

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of columns in order; the last may be narrower."""
        first_own, step = self.layout.first_own, self.layout.chunk_samples
        for start in range(0, len(self.columns), step):
            columns = self.columns[start : start + step]
            with _products(self.layout.tf32):
                logits = self.rows @ columns.T
            first = max(start, first_own)
            stop = max(first, min(start + len(columns), first_own + len(self.rows)))
            own_rows = slice(first - first_own, stop - first_own)
            yield Chunk(
                here=slice(start, start + len(columns)),
                columns=columns,
                logits=logits,
                own_rows=own_rows,
                own_columns=slice(first, stop),
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
            with _products(self.layout.tf32):
                rows.addmm_(slope, chunk.columns)
                torch.mm(slope.T, self.rows, out=columns[chunk.here])
        return rows.mul_(factor), columns.mul_(factor)


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Matrix products of fp32 in TF32, where a GPU has it, or in plain fp32."""
    cuda = torch.backends.cuda.matmul
    before, cuda.fp32_precision = cuda.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        cuda.fp32_precision = before


class Others:
    """The highest logit of each row and of each column in the chunks seen so far, own pairs left
    out."""

    def __init__(self, pairs: Pairs) -> None:
        rows, self._first_own = pairs.rows, pairs.layout.first_own
        # Where there are no others: below all numbers, and itself one.
        self._none = torch.finfo(rows.dtype).min
        self.row_top = rows.new_full((len(rows),), self._none)
        self.column_top = rows.new_empty(len(pairs.columns))  # this rank's rows, then all ranks'

    def see(self, chunk: Chunk) -> None:
        """Take in a chunk, whose own logits become -inf."""
        chunk.own.fill_(-math.inf)
        self.row_top = torch.maximum(self.row_top, chunk.logits.amax(dim=1))
        self.column_top[chunk.here] = chunk.logits.amax(dim=0).clamp_(min=self._none)

    def agree(self, own: Tensor) -> Tensor:
        """(2,) the share of rows whose own logit (B,) is above all others, and of their columns.
        Collective: column tops become those of all ranks."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.column_top, op=dist.ReduceOp.MAX)
        mine = slice(self._first_own, self._first_own + len(own))
        right = torch.stack([own > self.row_top, own > self.column_top[mine]])
        return right.to(own.dtype).mean(dim=1)
