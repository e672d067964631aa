"""Sources that are read record by record; their columns' types were found by a look at all."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.sources.columns import to_array
from data_prep.sources.links import LinkCounts
from data_prep.sources.source import READ_ROWS, FilePlace, RowBatch
from data_prep.sources.values import Written

MARKED_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record. Its picture is read when it is asked for."""

    columns: dict[str, Any]
    image: Callable[[], bytes]
    place: str
    stored: FilePlace | None = None


class Marks:
    """Where every MARKED_ROWS-th row begins, so that a reader need not read what lies before.

    An array of int64, a line each, by rows: (number of the row, number of its file, two numbers
    that tell where in it, the first 0 at its beginning).
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @classmethod
    def join(cls, files: list[tuple[int, list[tuple[int, int, int]]]]) -> "Marks":
        """files: of each in order its rows, and its marks, as above but for the file's number."""
        parts, first = [np.empty((0, 4), np.int64)], 0
        for number, (rows, marks) in enumerate(files):
            told = np.array(marks, np.int64).reshape(-1, 3)
            of = np.full(len(told), number)
            parts.append(np.column_stack([told[:, 0] + first, of, told[:, 1:]]))
            first += rows
        return cls(np.concatenate(parts))

    def before(self, row: int) -> tuple[int, int, tuple[int, int]]:
        """The last marked row up to this one: (its number, the number of the file, where in it)."""
        last = int(np.searchsorted(self.array[:, 0], row, side="right")) - 1
        marked, file, place, more = self.array[last].tolist()
        return marked, file, (place, more)


class RowSource(ABC):
    """A source whose rows come one by one."""

    schema: pa.Schema
    rows: int
    notes: list[str]
    image_column: str | None = None
    downloads: LinkCounts | None = None
    marks: Marks

    @abstractmethod
    def state(self) -> str:
        """Another after any file that is read changed."""

    @abstractmethod
    def files(self) -> list[dict[str, Any]]:
        """What was read, for the manifest."""

    @abstractmethod
    def read_rows(self, file: int, place: tuple[int, int]) -> Iterator[Row]:
        """All rows in order from a marked one on, with the columns that each has."""

    def batches(
        self, columns: list[str], *, with_images: bool, start: int = 0, stop: int | None = None
    ) -> Iterator[RowBatch]:
        """Rows in order. Pictures are read one by one, when they are asked for."""
        del with_images
        columns = columns or self.schema.names[:1]
        marked, file, place = self.marks.before(start)
        end = self.rows if stop is None else stop
        reading = islice(self.read_rows(file, place), start - marked, end - marked)
        while rows := list(islice(reading, READ_ROWS)):
            yield self.make_batch(rows, columns)

    def make_batch(self, rows: list[Row], columns: list[str]) -> RowBatch:
        """Some rows with their columns as a table."""
        table = pa.table(
            {
                name: to_array(
                    [row.columns.get(name) for row in rows], self.schema.field(name).type
                )
                for name in columns
            }
        )
        return RowBatch(
            table=table,
            image=lambda i: rows[i].image(),
            place=lambda i: rows[i].place,
            stored=lambda i: rows[i].stored,
        )


def parse_object(text: bytes | str) -> dict[str, Any] | None:
    """A JSON object by its top level's names; None if the text is none."""
    try:
        value = json.loads(text, parse_float=Written)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return None
    return value if isinstance(value, dict) else None
