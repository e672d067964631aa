"""Arrow columns to Python values, whatever their text holds and however their type spells it."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Numbers whose digits are kept, and objects (JSON) beside anything: --where sees the first field.
NUMBERS = pa.struct([("number", pa.float64()), ("written", pa.string())])
NESTED = pa.struct([("json", pa.string())])


class Written(float):
    """A number that is shown as it was written: 3.50."""

    def __new__(cls, text: str) -> "Written":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def text_of(value: Any) -> str:
    """A value that is not null as text: numbers as written, true and false, the rest as JSON."""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def column_values(column: pa.ChunkedArray) -> list[Any]:
    """Python values of a column; text that is not valid UTF-8 comes as bytes."""
    kind = column.type
    if kind == NUMBERS:
        return [text and Written(text) for text in pc.struct_field(column, "written").to_pylist()]
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        short = np.float32 if pa.types.is_float32(kind) else np.float16
        return [v if v is None else Written(str(short(v))) for v in column.to_pylist()]
    if kind == NESTED:
        column = pc.struct_field(column, "json")
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Parquet does not promise valid UTF-8, and one bad string must not end the run.
        column = column.cast(pa.large_binary())
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [_as_text(value) for value in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_nested_value(scalar) for scalar in column]


def searchable(table: pa.Table) -> pa.Table:
    """The table as --where sees it: numbers as numbers, objects as the text of their JSON."""
    for i, field in enumerate(table.schema):
        if field.type in (NUMBERS, NESTED):
            table = table.set_column(i, field.name, pc.struct_field(table.column(i), 0))
    return table


def _as_text(value: bytes | None) -> str | bytes | None:
    """Text of UTF-8 bytes; other bytes unchanged."""
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _nested_value(scalar: pa.Scalar) -> Any:
    """Python value of a nested scalar; bytes that no one can read if text inside is not UTF-8."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"
