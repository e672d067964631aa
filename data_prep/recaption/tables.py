"""A table of captions without pictures: Parquet, CSV, TSV or JSON Lines, row by row."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from data_prep.sources.column_choice import list_columns, object_columns
from data_prep.sources.columns import ColumnTypes, to_array
from data_prep.sources.files import LocalFiles
from data_prep.sources.find import find_files
from data_prep.sources.parquet import read_footers, read_range
from data_prep.sources.path_tables import LINES_SUFFIXES, TABLE_SUFFIXES, read_cells, read_lines
from data_prep.sources.source import READ_ROWS
from data_prep.sources.values import column_values

SUFFIXES = (".parquet", *TABLE_SUFFIXES)


class CaptionTable:
    """The table's columns, and its rows in order, some hundred in memory at once.

    The types of JSON and CSV are found by one look at all rows. ValueError or FileNotFoundError
    name the file and what is wrong with it.
    """

    def __init__(self, source: str) -> None:
        try:
            self.paths = find_files(source, SUFFIXES)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"--source {source}: no such table; name a file, a folder or a pattern of "
                f"{', '.join(SUFFIXES)}"
            ) from error
        kinds = {path.suffix.lower() for path in self.paths}
        if len(kinds) > 1 or not kinds <= {*SUFFIXES}:
            raise ValueError(
                f"--source {source} is files of {sorted(kinds)}: name files of one of "
                f"{', '.join(SUFFIXES)}"
            )
        (self.kind,) = kinds
        if self.kind == ".parquet":
            self.schema = read_footers(LocalFiles(self.paths))[0]
            return
        types = ColumnTypes()
        for _, record in self._records():
            types.see(record)
        if not types.kinds:
            raise ValueError(f"--source {source} has no rows; name another table")
        self.schema = pa.schema(types.fields())

    @property
    def columns(self) -> list[str]:
        return self.schema.names

    @property
    def list_columns(self) -> list[str]:
        """Those that hold lists of texts."""
        return list_columns(self.schema)

    @property
    def object_columns(self) -> list[str]:
        """Those that hold objects."""
        return object_columns(self.schema)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def rows(self, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place for people, values of some columns) of each row; bytes where it is not UTF-8."""
        for places, table in self._batches(columns):
            values = [column_values(table.column(name)) for name in columns]
            for place, row in zip(places, zip(*values, strict=True), strict=True):
                yield place, dict(zip(columns, row, strict=True))

    def _batches(self, columns: list[str]) -> Iterator[tuple[list[str], pa.Table]]:
        if self.kind == ".parquet":
            for path in self.paths:
                file = LocalFiles([path])
                rows = read_footers(file)[1][0]
                for first, table in read_range(file, path, columns, 0, rows):
                    places = [f"{path} row {first + i}" for i in range(table.num_rows)]
                    yield places, table
            return
        records = self._records()
        while some := list(islice(records, READ_ROWS)):
            arrays = {
                name: to_array(
                    [record.get(name) for _, record in some], self.schema.field(name).type
                )
                for name in columns
            }
            yield [place for place, _ in some], pa.table(arrays)

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        read = read_lines if self.kind in LINES_SUFFIXES else read_cells
        for path in self.paths:
            for line, record, _ in read(path):
                yield f"{path} line {line}", record
