"""Tables without pictures: Parquet, CSV, TSV or JSON Lines, row by row (captions, links)."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.sources.columns import ColumnTypes, to_array
from data_prep.sources.files import LocalFiles
from data_prep.sources.find import find_files
from data_prep.sources.parquet import read_footers, read_range
from data_prep.sources.path_tables import (
    LINES_SUFFIXES,
    TABLE_SUFFIXES,
    CellFormat,
    read_cells,
    read_lines,
)
from data_prep.sources.source import READ_ROWS
from data_prep.sources.values import column_values

SUFFIXES = (".parquet", *TABLE_SUFFIXES)


def find_tables(option: str, source: str) -> list[Path]:
    """The files that a table is. ValueError or FileNotFoundError name `option`."""
    try:
        paths = find_files(source, SUFFIXES, option)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{option}={source}: no such table; name a file, a folder or a pattern of "
            f"{', '.join(SUFFIXES)}"
        ) from error
    kinds = {path.suffix.lower() for path in paths}
    if not kinds <= {*SUFFIXES}:
        raise ValueError(
            f"{option}={source} is files of {sorted(kinds)}: name files of one of "
            f"{', '.join(SUFFIXES)}"
        )
    return paths


class PlainTable:
    """The table's columns, and its rows in order, some hundred in memory at once.

    The types of JSON and CSV are found by one look at all rows. ValueError names the file and what
    is wrong with it. `formats` tells of files that are not written as a build expects them.
    """

    def __init__(self, paths: list[Path], formats: dict[Path, CellFormat] | None = None) -> None:
        self.paths = paths
        self.formats = formats or {}
        kinds = {path.suffix.lower() == ".parquet" for path in paths}
        if len(kinds) > 1:
            raise ValueError(f"{paths[0].parent} has Parquet and other tables; name files of one")
        (self.parquet,) = kinds
        self.beyond_floats: set[str] = set()
        if self.parquet:
            footers = read_footers(LocalFiles(paths))
            self.schema, self.count = footers.schema, sum(footers.rows)
            return
        types, self.count = ColumnTypes(), 0
        for path in paths:
            for _, record in self._records(path):
                types.see(record)
                self.count += 1
        if not types.kinds:
            raise ValueError(f"{paths[0]} has no rows; name another table")
        self.schema = pa.schema(types.fields())
        self.beyond_floats = types.beyond_floats()

    @property
    def columns(self) -> list[str]:
        return self.schema.names

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def rows(self, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place for people, values of some columns) of each row; bytes where it is not UTF-8."""
        for path in self.paths:
            for places, table in self.tables(path, columns):
                values = [column_values(table.column(name)) for name in columns]
                for place, row in zip(places, zip(*values, strict=True), strict=True):
                    yield place, dict(zip(columns, row, strict=True))

    def tables(
        self, path: Path, columns: list[str], at_once: int = READ_ROWS
    ) -> Iterator[tuple[list[str], pa.Table]]:
        """The rows of one of the files, as (place of each, a table of few rows)."""
        if self.parquet:
            file = LocalFiles([path])
            rows = read_footers(file).rows[0]
            for first, table in read_range(file, path, columns, 0, rows, types=self.schema):
                yield [f"{path} row {first + i}" for i in range(table.num_rows)], table
            return
        records = self._records(path)
        while some := list(islice(records, at_once)):
            arrays = {
                name: to_array(
                    [record.get(name) for _, record in some], self.schema.field(name).type
                )
                for name in columns
            }
            yield [place for place, _ in some], pa.table(arrays)

    def _records(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        read = partial(read_cells, form=self.formats.get(path))
        if path.suffix.lower() in LINES_SUFFIXES:
            read = partial(read_lines)
        for line, record, _ in read(path):
            yield f"{path} line {line}", record
