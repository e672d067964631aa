"""Sources that are read record by record; their columns' types were found by a look at all."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from data_prep.sources.columns import to_array
from data_prep.sources.source import READ_ROWS, Batch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record. Its picture is read when it is asked for."""

    columns: dict[str, Any]
    image: Callable[[], bytes]
    place: str


class RowSource(ABC):
    """A source whose rows come one by one."""

    schema: pa.Schema
    rows: int
    notes: list[str]
    image_column: str | None = None

    @abstractmethod
    def files(self) -> list[dict[str, Any]]:
        """What was read, for the manifest."""

    @abstractmethod
    def read_rows(self, columns: list[str]) -> Iterator[Row]:
        """All rows in order, with at least the named columns that the row has."""

    def batches(self, columns: list[str], *, with_images: bool) -> Iterator[Batch]:
        """All rows in order. Pictures are read one by one, when they are asked for."""
        del with_images
        columns = columns or self.schema.names[:1]
        reading = self.read_rows(columns)
        while rows := list(islice(reading, READ_ROWS)):
            yield self.make_batch(rows, columns)

    def make_batch(self, rows: list[Row], columns: list[str]) -> Batch:
        """Some rows with their columns as a table."""
        table = pa.table(
            {
                name: to_array(
                    [row.columns.get(name) for row in rows], self.schema.field(name).type
                )
                for name in columns
            }
        )
        return Batch(table=table, image=lambda i: rows[i].image(), place=lambda i: rows[i].place)


def parse_object(text: bytes | str) -> dict[str, Any] | None:
    """A JSON object by its top level's names; None if the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return None
    return value if isinstance(value, dict) else None
