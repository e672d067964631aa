"""Arrow columns to Python values, whatever their text holds and however their type spells it."""

import json
from collections.abc import Iterator
from itertools import islice
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


def column_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Python values of a column; text that is not valid UTF-8 comes as bytes, in lists too."""
    kind = column.type
    if kind == NUMBERS:
        return [_as_written(text) for text in pc.struct_field(column, "written").to_pylist()]
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        short = np.float32 if pa.types.is_float32(kind) else np.float16
        return [v if v is None else Written(str(short(v))) for v in column.to_pylist()]
    if kind == NESTED:
        return column_values(pc.struct_field(column, "json"))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Parquet does not promise valid UTF-8, and one bad string must not end the run.
        column = column.cast(pa.large_binary())
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [_as_text(value) for value in column.to_pylist()]
    if is_list(kind):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return [value for chunk in chunks for value in _lists(chunk)]
    if pa.types.is_struct(kind):
        fields = [column_values(pc.struct_field(column, [i])) for i in range(kind.num_fields)]
        names = [field.name for field in kind]
        return [
            dict(zip(names, (field[i] for field in fields), strict=True)) if there else None
            for i, there in enumerate(column.is_valid().to_pylist())
        ]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_odd_value(scalar) for scalar in column]


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in lists)


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


def _as_written(text: str | None) -> int | Written | None:
    """A number of a column that has others with decimals: whole ones are exact."""
    if text is None:
        return None
    return int(text) if text.lstrip("-").isdigit() else Written(text)


def _lists(array: pa.Array) -> Iterator[list[Any] | None]:
    """The values of lists."""
    items = iter(column_values(array.flatten()))
    for length in pc.list_value_length(array).to_pylist():
        yield None if length is None else list(islice(items, length))


def _odd_value(scalar: pa.Scalar) -> Any:
    """The value of a scalar; null for a time that Python does not know, as one beyond the year
    9999, bytes that no one can read if text inside is not UTF-8."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"
    except (ValueError, OverflowError):
        return None  # not Arrow's text: beyond the year 32767 it names another year
