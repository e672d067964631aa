"""Columns of records whose types no schema tells (JSON, CSV): seen in full, then made Arrow."""

import json
import re
from typing import Any

import pyarrow as pa

INT64 = range(-(1 << 63), 1 << 63)
# Only what reads back as it was written: 007 and 1e5 stay text.
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
# All that a column can have, by the names that Arrow prints.
TYPES = {
    str(kind): kind
    for kind in (pa.bool_(), pa.int64(), pa.float64(), pa.string(), pa.list_(pa.string()))
}


class ColumnTypes:
    """What kinds of value each column holds; its memory grows with the columns, not the rows."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.kinds: dict[str, set[str]] = {name: set() for name in names}

    def see(self, record: dict[str, Any]) -> None:
        """Note the columns and kinds of one record."""
        for name, value in record.items():
            self.kinds.setdefault(name, set()).add(kind_of(value))

    def fields(self) -> list[tuple[str, pa.DataType]]:
        """Each column's type, in the order in which the columns were first seen."""
        return [(name, arrow_type(kinds - {"null"})) for name, kinds in self.kinds.items()]


def kind_of(value: Any) -> str:
    """The kind of a JSON value. Numbers beyond 64 bits and nested values can only be text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in INT64 else "text"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "texts"
    return "text"


def arrow_type(kinds: set[str]) -> pa.DataType:
    """The narrowest type that holds all these kinds of value."""
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds in ({"float"}, {"int", "float"}):
        return pa.float64()
    if kinds == {"texts"}:
        return pa.list_(pa.string())
    return pa.string()


def to_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as an Arrow array of a type that was found for their column.

    Text may hold bytes that are no UTF-8, for the reader of the column to judge.
    """
    if pa.types.is_string(kind):
        encoded = [None if value is None else text_bytes(value) for value in values]
        return pa.array(encoded, pa.binary()).view(pa.string())
    if pa.types.is_list(kind):
        offsets = [0]
        items: list[Any] = []
        for value in values:
            items += value or []
            offsets.append(len(items))
        mask = pa.array([value is None for value in values], pa.bool_())
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), to_array(items, pa.string()), mask=mask
        )
    if pa.types.is_floating(kind):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, kind)


def text_bytes(value: Any) -> bytes:
    """A value as text: strings and bytes as they are, anything else as JSON."""
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        return text.encode("utf-8", "surrogateescape")  # bytes of a file that were not UTF-8
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")  # half a character, escaped in JSON


def cell_value(cell: str) -> Any:
    """The value of a cell of a CSV file: null if empty, a number if it is plainly one."""
    if not cell:
        return None
    if INTEGER.fullmatch(cell):
        return int(cell)
    return float(cell) if DECIMAL.fullmatch(cell) else cell
