"""What a look through all archives of a corpus found, kept so that others need not look."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.sources.columns import TYPES


@dataclass(frozen=True, kw_only=True)
class Look:
    """Columns, the number of records, and where they begin. Plain, to be kept as JSON."""

    of: dict[str, Any]  # what was looked through
    rows: int
    columns: list[tuple[str, str]]  # (name, Arrow type) in order
    notes: list[str]  # for the user to see
    marks: list[tuple[int, int, int]]  # rows: (number, number of the file, byte in it)

    @property
    def schema(self) -> pa.Schema:
        """The columns, as Arrow has them."""
        return pa.schema([(name, TYPES[kind]) for name, kind in self.columns])


def describe_columns(schema: pa.Schema) -> list[tuple[str, str]]:
    """(name, type) of each column."""
    return [(field.name, str(field.type)) for field in schema]
