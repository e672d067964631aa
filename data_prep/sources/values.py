"""Arrow columns to Python values, whatever their text holds."""

from typing import Any

import pyarrow as pa


def column_values(column: pa.ChunkedArray) -> list[Any]:
    """Python values of a column; text that is not valid UTF-8 comes as bytes."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        # Parquet does not promise valid UTF-8, and one bad string must not end the run.
        column = column.cast(pa.large_binary())
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [as_text(value) for value in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [nested_value(scalar) for scalar in column]


def as_text(value: bytes | None) -> str | bytes | None:
    """Text of UTF-8 bytes; other bytes unchanged."""
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def nested_value(scalar: pa.Scalar) -> Any:
    """Python value of a nested scalar; bytes that no one can read if text inside is not UTF-8."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"
