"""Sources that are Arrow tables: the pictures are one of the columns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.source import Batch


class TableSource(ABC):
    """A source whose rows come as tables, pictures included."""

    def __init__(self, source: str, schema: pa.Schema, rows: int, image_column: str) -> None:
        check_image_column(source, schema, image_column)
        self.image_column = image_column
        self.schema = schema.remove(schema.get_field_index(image_column))
        self.rows = rows

    @abstractmethod
    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the files."""

    @abstractmethod
    def tables(self, columns: list[str]) -> Iterator[tuple[str, int, pa.Table]]:
        """All rows as (where, number of the first row there, a table of few rows)."""

    def batches(self, columns: list[str], *, with_images: bool) -> Iterator[Batch]:
        """All rows in order. Pictures are not read from disk unless asked for."""
        # A column must be asked for even if none is needed, or the rows could not be counted.
        columns = columns or self.schema.names[:1]
        asked = [*columns, self.image_column] if with_images else columns
        for where, first, table in self.tables(asked):
            images = encoded_pictures(table.column(self.image_column)) if with_images else None
            yield make_batch(table.select(columns), images, where, first)


def make_batch(table: pa.Table, images: pa.ChunkedArray | None, where: str, first: int) -> Batch:
    """Rows of one table, the first of which is number `first` in `where`."""

    def image(row: int) -> bytes | None:
        return None if images is None else images[row].as_py()

    return Batch(table=table, image=image, place=lambda row: f"{where} row {first + row}")


def check_image_column(source: str, schema: pa.Schema, name: str) -> None:
    """ValueError unless the image column exists and holds encoded pictures."""
    if name not in schema.names:
        raise ValueError(
            f"image_column={name!r} not found in {source}: it has columns "
            f"{schema.names}; choose one with --image-column"
        )
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"image_column={name!r} of {source} has type {schema.field(name).type}, needed "
            "binary or struct<bytes: binary, path: string>; choose another with --image-column"
        )


def encoded_pictures(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a binary or {bytes, path} column; null where there are none.

    A `path` is never followed: a corpus must not choose which local files are read.
    """
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
