"""Columns of records whose types no schema tells (JSON, CSV): seen in full, then made Arrow."""

import re
from typing import Any

import pyarrow as pa

from data_prep.sources.values import NESTED, NUMBERS, Written, text_of

_INT64 = range(-(1 << 63), 1 << 63)
_EXACT = 1 << 53  # whole numbers beyond it are not exact as floats
# What is plainly a number: 007 and 1e5 stay text.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
# All that a column can have, by the names that Arrow prints.
TYPES = {
    str(kind): kind
    for kind in (pa.bool_(), pa.int64(), pa.string(), pa.list_(pa.string()), NUMBERS, NESTED)
}


class ColumnTypes:
    """What kinds of value each column holds; its memory grows with the columns, not the rows."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.kinds: dict[str, set[str]] = {name: set() for name in names}

    def see(self, record: dict[str, Any]) -> None:
        """Note the columns and kinds of one record."""
        for name, value in record.items():
            self.kinds.setdefault(name, set()).add(_kind_of(value))

    def plain(self) -> list[tuple[str, list[str]]]:
        """To be kept as JSON, for `add`."""
        return [(name, sorted(kinds)) for name, kinds in self.kinds.items()]

    def add(self, plain: list[tuple[str, list[str]]]) -> None:
        """Note what others saw."""
        for name, kinds in plain:
            self.kinds.setdefault(name, set()).update(kinds)

    def fields(self) -> list[tuple[str, pa.DataType]]:
        """Each column's type, in the order in which the columns were first seen."""
        return [(name, _arrow_type(kinds - {"null"})) for name, kinds in self.kinds.items()]

    def beyond_floats(self) -> set[str]:
        """Columns of decimals and of whole numbers that no float holds."""
        return {name for name, kinds in self.kinds.items() if {"long", "float"} <= kinds}


def _kind_of(value: Any) -> str:
    """The kind of a JSON value. Whole numbers beyond 64 bits can only be text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if value not in _INT64:
            return "text"
        return "int" if abs(value) <= _EXACT else "long"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list):
        return "object" if any(isinstance(item, list | dict) for item in value) else "list"
    return "object" if isinstance(value, dict) else "text"


def _arrow_type(kinds: set[str]) -> pa.DataType:
    """The narrowest type that holds all these kinds of value."""
    kinds = {"int" if kind == "long" else kind for kind in kinds}
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds in ({"float"}, {"int", "float"}):
        return NUMBERS
    if "object" in kinds:
        return NESTED
    if "list" in kinds:
        return pa.list_(pa.string())
    return pa.string()


def to_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as an Arrow array of a type that was found for their column.

    Text may hold bytes that are no UTF-8, for the reader of the column to judge.
    """
    if pa.types.is_string(kind):
        encoded = [None if value is None else _text_bytes(value) for value in values]
        return pa.array(encoded, pa.binary()).view(pa.string())
    if pa.types.is_list(kind):
        offsets = [0]
        items: list[Any] = []
        for value in values:
            if value is not None:  # a single value beside lists is a list of one
                items += value if isinstance(value, list) else [value]
            offsets.append(len(items))
        mask = pa.array([value is None for value in values], pa.bool_())
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), to_array(items, pa.string()), mask=mask
        )
    if kind in (NUMBERS, NESTED):
        texts = to_array(values, pa.string())
        numbers = [None if value is None or kind == NESTED else float(value) for value in values]
        parts = [texts] if kind == NESTED else [pa.array(numbers, pa.float64()), texts]
        absent = pa.array([value is None for value in values], pa.bool_())
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=absent)
    return pa.array(values, kind)


def _text_bytes(value: Any) -> bytes:
    """A value as text: strings and bytes as they are, numbers as written, the rest as JSON."""
    if isinstance(value, bytes):
        return value
    text = text_of(value)
    try:
        return text.encode("utf-8", "surrogateescape")  # bytes of a file that were not UTF-8
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")  # half a character, escaped in JSON


def cell_value(cell: str) -> Any:
    """The value of a cell of a CSV file: null if empty, a number if it is plainly one."""
    if not cell:
        return None
    if _INTEGER.fullmatch(cell):
        return int(cell)
    return Written(cell) if _DECIMAL.fullmatch(cell) else cell
