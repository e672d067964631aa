"""Sources that are Arrow tables: the pictures are one of the columns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.column_choice import DEFAULT_IMAGE_COLUMN, choose_image_column
from data_prep.sources.source import Batch


class TableSource(ABC):
    """A source whose rows come as tables, pictures included."""

    def __init__(self, source: str, schema: pa.Schema, rows: int, image_column: str | None) -> None:
        self.name = source
        self.image_column = choose_image_column(source, schema, image_column)
        self.pictures_type = schema.field(self.image_column).type
        self.schema = schema.remove(schema.get_field_index(self.image_column))
        self.rows = rows
        self.notes: list[str] = []
        if image_column is None and self.image_column != DEFAULT_IMAGE_COLUMN:
            self.notes.append(f"pictures are read from column {self.image_column!r}")

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


def refuse_bare_paths(source: TableSource) -> None:
    """ValueError if the picture column holds {bytes, path} and there are paths alone."""
    if not pa.types.is_struct(source.pictures_type):
        return
    example = None
    for _, _, table in source.tables([source.image_column]):
        column = table.column(source.image_column)
        if encoded_pictures(column).null_count < len(column):
            return  # nearly always in the first rows; a column of paths alone is small
        if example is None and source.pictures_type.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").drop_null()
            example = paths[0].as_py() if len(paths) else None
    if example is not None:
        raise ValueError(
            f"image_column={source.image_column!r} of {source.name} holds paths alone, e.g. "
            f"{example!r}, which are never followed; Dataset.save_to_disk of Hugging Face "
            "datasets puts the bytes in (to_parquet does not), or name the folder of pictures "
            "with --source"
        )


def encoded_pictures(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a binary or {bytes, path} column; null where there are none.

    A `path` is never followed: a corpus must not choose which local files are read.
    """
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
