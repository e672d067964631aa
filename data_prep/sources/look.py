"""A look through all files of a corpus: done once, by all who work on it, and kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.pool import PoolOptions
from data_prep.records import Record, Records, digest_of
from data_prep.sources.columns import TYPES
from pretrain.base.progress import Bar

_SMALL_BYTES = 256 << 20  # of a corpus, through which one process looks before others have started


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Who looks through a corpus."""

    folder: Path | None = None  # where it is kept what was found in each file
    options: PoolOptions = field(default_factory=PoolOptions)


@dataclass(frozen=True, kw_only=True)
class Look:
    """Columns, the number of records, and where they begin. Plain, to be kept."""

    of: dict[str, Any]  # what was looked through
    rows: int
    columns: list[tuple[str, str]]  # (name, Arrow type) in order
    notes: list[str]  # for the user to see
    marks: np.ndarray  # as Marks has them

    @property
    def schema(self) -> pa.Schema:
        """The columns, as Arrow has them."""
        return pa.schema([(name, TYPES[kind]) for name, kind in self.columns])


def describe_columns(schema: pa.Schema) -> list[tuple[str, str]]:
    """(name, type) of each column."""
    return [(field.name, str(field.type)) for field in schema]


def look_through(
    function: Callable[[Any, int], Record],
    state: Any,
    sizes: list[int],
    asked: dict[str, Any],
    looking: Looking,
    unit: str,
) -> Iterator[Record]:
    """function(state, number) of each file, in order.

    sizes: bytes of each; asked: all that decides what is found.
    """
    numbers, what = range(len(sizes)), "look through"
    if looking.folder is None or sum(sizes) <= _SMALL_BYTES:
        for number in Bar(numbers, unit=unit, what=what):
            yield function(state, number)
        return
    records = Records(
        folder=looking.folder / digest_of(asked),  # others may ask otherwise
        request=asked,
        function=function,
        state=state,
        items=numbers,
    )
    records.do(looking.options, what=what, unit=unit, others=True)
    yield from records
