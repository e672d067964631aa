"""Sources that are Arrow tables: the pictures are one of the columns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.column_choice import DEFAULT_IMAGE_COLUMN, choose_image_column, holds_text
from data_prep.sources.links import LinkCounts
from data_prep.sources.picture_files import PictureRoot
from data_prep.sources.source import RowBatch
from data_prep.sources.values import column_values


class TableSource(ABC):
    """A source whose rows come as tables, pictures included."""

    downloads: LinkCounts | None = None

    def __init__(
        self,
        source: str,
        schema: pa.Schema,
        rows: int,
        image_column: str | None,
        image_root: str | None = None,
    ) -> None:
        self.name = source
        self.root = None if image_root is None else PictureRoot(Path(image_root))
        self.image_column = choose_image_column(
            source, schema, image_column, paths=self.root is not None
        )
        self.pictures_type = schema.field(self.image_column).type
        self.schema = schema.remove(schema.get_field_index(self.image_column))
        self.rows = rows
        self.notes: list[str] = []
        if image_column is None and self.image_column != DEFAULT_IMAGE_COLUMN:
            self.notes.append(f"pictures are read from column {self.image_column!r}")

    @abstractmethod
    def state(self) -> str:
        """Another after any file that is read changed."""

    @abstractmethod
    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the files."""

    @abstractmethod
    def tables(
        self, columns: list[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[str, int, pa.Table]]:
        """Rows in order as (where, number of the first row there, a table of few rows)."""

    def batches(
        self, columns: list[str], *, with_images: bool, start: int = 0, stop: int | None = None
    ) -> Iterator[RowBatch]:
        """Rows in order. Pictures are not read from disk unless asked for."""
        # A column must be asked for even if none is needed, or the rows could not be counted.
        columns = columns or self.schema.names[:1]
        asked = [*columns, self.image_column] if with_images else columns
        for where, first, table in self.tables(asked, start, stop):
            pictures = table.column(self.image_column) if with_images else None
            yield _make_batch(table.select(columns), pictures, self.root, where, first)


def _make_batch(
    table: pa.Table,
    pictures: pa.ChunkedArray | None,
    root: PictureRoot | None,
    where: str,
    first: int,
) -> RowBatch:
    """Rows of one table, the first of which is number `first` in `where`."""
    encoded = None if pictures is None else _take_pictures(pictures)
    paths = None if pictures is None or root is None else _picture_paths(pictures)

    def image(row: int) -> bytes | None:
        data = None if encoded is None else encoded[row].as_py()
        if data is None and root is not None and paths is not None:
            return root.read(paths[row])
        return data

    return RowBatch(table=table, image=image, place=lambda row: f"{where} row {first + row}")


def refuse_bare_paths(source: TableSource) -> None:
    """ValueError if the picture column holds {bytes, path} and there are paths alone."""
    if not pa.types.is_struct(source.pictures_type) or source.root is not None:
        return
    example = None
    for _, _, table in source.tables([source.image_column]):
        column = table.column(source.image_column)
        if pc.struct_field(column, "bytes").null_count < len(column):
            return  # nearly always in the first rows; a column of paths alone is small
        if example is None and source.pictures_type.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").drop_null()
            example = paths[0].as_py() if len(paths) else None
    if example is not None:
        raise ValueError(
            f"image_column={source.image_column!r} of {source.name} holds only paths, e.g. "
            f"{example!r}; name the folder of these pictures with --image-root (none outside it "
            "is read), or put the bytes in, as Dataset.save_to_disk of Hugging Face datasets does"
        )


def _take_pictures(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The bytes of a binary or {bytes, path} column, null where there are none; None of paths.

    A `path` is followed only below a root that the user named: a corpus must not choose which
    local files are read.
    """
    if holds_text(column.type):
        return None
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _picture_paths(column: pa.ChunkedArray) -> list[str | bytes | None] | None:
    """The paths of a column of text or {bytes, path}; None if it has none."""
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("path") < 0:
            return None
        column = pc.struct_field(column, "path")
    return column_values(column) if holds_text(column.type) else None
