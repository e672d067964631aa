"""A corpus whose options have been checked, and its rows that are wanted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.rejection import Reason, RejectedError
from data_prep.sources.column_choice import choose_caption_column, list_columns, object_columns
from data_prep.sources.hub import HubOptions, find_on_hub
from data_prep.sources.hub_address import is_hub_address
from data_prep.sources.kinds import Format, open_far, open_source
from data_prep.sources.look import Look, Looking
from data_prep.sources.source import Record, RowBatch
from data_prep.sources.stores import find_in_store, is_far
from data_prep.sources.values import column_values, searchable
from pretrain.dataset.far_files import FarFiles

_COUNTED_ROWS = 1 << 20
_CACHE_NAME = "clipa-pretrain"
_TIMEOUT_S = 300.0  # without a byte; file systems themselves give up and try again much sooner


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Which rows and pictures are read"""

    image_column: str | None = None
    """Column of the pictures: encoded (binary, or a Hugging Face image struct {bytes, path}), or
    their paths in a table; of tars, the members' extension. Null: `image`, or the only one with a
    well-known name (jpg, png, image_bytes, file_name, path and the like)."""
    where: str | None = None
    """Keep the rows for which this SQL expression over the other columns is true, e.g.
    "split = 'train' AND artist != 'emojione'"."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where far files lie while they are needed"""

    cache: Path | None = None
    """Folder in whose `clipa-pretrain` files from the hub or an object store lie while they are
    needed, on a disk of the machine's own: over NFS, one machine would remove what another reads.
    Null: that of huggingface_hub (HF_HOME, or ~/.cache/huggingface)."""
    cache_gib: float | None = 32.0
    """Size of `clipa-pretrain` beyond which files that were not used for longest are removed. Room
    for two files a worker saves bringing them again within a task. Null: all are kept."""

    def __post_init__(self) -> None:
        if self.cache_gib is not None and self.cache_gib < 0:
            raise ValueError(f"cache_gib={self.cache_gib}: --cache-gib is 0 or more, or null")

    def open(self) -> FarFiles:
        """The copies."""
        from huggingface_hub import constants

        # Never the folder itself: what lies there of the user's must not make room.
        folder = (self.cache or Path(constants.HF_HOME)) / _CACHE_NAME
        limit = None if self.cache_gib is None else int(self.cache_gib * 2**30)
        names = ("cache", "cache_gib", "timeout_s")
        return FarFiles(folder, limit, timeout_s=_TIMEOUT_S, options=names)


@dataclass(frozen=True, kw_only=True)
class SourceOptions(RowOptions, HubOptions, CacheOptions):
    """What is read"""

    source: str
    """The corpus: a file, a folder or a glob pattern. It holds Parquet, WebDataset tars, tables of
    paths and captions (CSV, TSV, JSON Lines), pictures with their texts (NAME.jpg and NAME.txt or
    NAME.json), or what `Dataset.save_to_disk` wrote. Parquet and tars may lie on an object store or
    a web server (s3://BUCKET/FOLDER, https://…/{000..099}.tar), or on the hub
    (hf://datasets/OWNER/NAME@REVISION/PATH)."""
    format: Format | None = None
    """How the source is read: parquet, webdataset, folder, table (CSV, TSV, JSON Lines),
    imagefolder (pictures with metadata.csv or metadata.jsonl) or saved (`save_to_disk`). Null:
    detected from what is there."""
    image_root: str | None = None
    """Folder below which paths of pictures lie; none outside it is read. Null: a table's own
    folder; paths in Parquet are not followed."""


class Corpus:
    """An opened corpus: its columns are known and its options checked before a row is read.

    FileNotFoundError or ValueError name the input, what was found, and the option to change.
    """

    def __init__(
        self,
        options: SourceOptions,
        commit: str | None = None,
        look: Look | None = None,
        looking: Looking | None = None,
    ) -> None:
        """commit: of a dataset on the hub, where it is not that which its address has now. look:
        what an earlier look through the tars found. looking: who looks else."""
        looking = looking or Looking()
        self.hub: dict[str, Any] | None = None  # for the manifest
        self.look: Look | None = None  # through tars, for who goes on with the build
        self.format: Format
        given = options.image_column, options.image_root
        if is_hub_address(options.source):
            kind, files = find_on_hub(
                options.source, options, options.format, commit, options.open()
            )
            self.hub = files.origin
        else:
            _refuse_hub_options(options)
            kind, files = None, None
            if is_far(options.source):
                kind, files = find_in_store(options.source, options.format, options.open())
        self.is_far = files is not None  # a row's picture may bring its whole file
        if kind is not None and files is not None:
            self.format = kind
            self.source, self.look = open_far(options.source, kind, files, *given, look, looking)
        else:
            self.format, self.source, self.look = open_source(
                options.source, options.format, *given, look, looking
            )
        # Of files that lie far away.
        self.addresses = [] if files is None else [far.address for far in files.found.values()]
        self.rows = self.source.rows
        self.columns: list[str] = self.source.schema.names
        self.caption_column = choose_caption_column(self.source.schema)
        self.list_columns = list_columns(self.source.schema)
        self.object_columns = object_columns(self.source.schema)
        self.where = None
        if options.where is not None:
            self.where = _compile_where(options.where, options.source, self.source.schema)

    def records(
        self, columns: list[str], *, with_images: bool, start: int = 0, stop: int | None = None
    ) -> Iterator[Record]:
        """The rows that pass `where`, in the source's order, with the named columns.

        `start` and `stop` bound the numbers of the rows in the source.
        """
        tested = [] if self.where is None else _columns_of(self.where)
        needed = [name for name in self.columns if name in {*columns, *tested}]
        first = start
        for batch in self.source.batches(needed, with_images=with_images, start=start, stop=stop):
            rows = list(range(batch.table.num_rows))
            if self.where is not None:
                rows = _matching_rows(batch.table, self.where)
            table = batch.table.take(pa.array(rows, pa.int64()))
            values = [column_values(table.column(name)) for name in columns]
            for i, row in enumerate(rows):
                image, refused = _read_image(batch, row) if with_images else (None, None)
                yield Record(
                    image=image,
                    refused=refused,
                    columns={name: values[c][i] for c, name in enumerate(columns)},
                    place=batch.place(row),
                    number=first + row,
                    stored=batch.stored(row),
                )
            first += batch.table.num_rows

    def selected(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The numbers of the rows that pass `where`, in order; no other column is read.

        `start` and `stop` bound them.
        """
        if self.where is None:
            stop = self.rows if stop is None else stop
            for first in range(start, stop, _COUNTED_ROWS):
                yield np.arange(first, min(first + _COUNTED_ROWS, stop))
            return
        first = start
        columns = _columns_of(self.where)
        for batch in self.source.batches(columns, with_images=False, start=start, stop=stop):
            yield first + np.array(_matching_rows(batch.table, self.where), np.int64)
            first += batch.table.num_rows


def _refuse_hub_options(options: SourceOptions) -> None:
    """ValueError where an option of the hub's is given for a source on this machine."""
    for name in ("hub_config", "hub_split"):
        if (value := getattr(options, name)) is not None:
            raise ValueError(
                f"{name}={value}: {options.source} is not on the hub; leave out "
                f"--{name.replace('_', '-')}, or name a dataset hf://datasets/OWNER/NAME with "
                "--source"
            )


def _read_image(batch: RowBatch, row: int) -> tuple[bytes | None, Reason | None]:
    """A row's picture, or why there is none."""
    try:
        return batch.image(row), None
    except RejectedError as rejection:
        return None, rejection.reason


def _compile_where(where: str, source: str, schema: pa.Schema) -> pl.Expr:
    """The expression, checked against the columns. ValueError if it is not a row test."""
    try:
        expression = pl.sql_expr(where)
        names = _columns_of(expression)
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise ValueError(
                f"where={where!r} names {missing}, not among the columns {schema.names} of "
                f"{source}; change --where"
            )
        empty = pl.DataFrame(searchable(schema.empty_table().select(names)))
        kind = empty.select(expression).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"where={where!r} is not understood: {error}; change --where") from error
    if kind != pl.Boolean or not names:
        raise ValueError(
            f"where={where!r} gives {kind} over columns {names}, not true or false for each "
            "row; change --where"
        )
    return expression


def _columns_of(expression: pl.Expr) -> list[str]:
    """The columns that an expression reads, each once."""
    return list(dict.fromkeys(expression.meta.root_names()))


def _matching_rows(table: pa.Table, expression: pl.Expr) -> list[int]:
    """Numbers of the rows that pass; unknown counts as false, as in SQL."""
    frame = pl.DataFrame(searchable(table.select(_columns_of(expression))))
    try:
        return frame.select(expression).to_series().arg_true().to_list()
    except pl.exceptions.PolarsError as error:  # types fit, values do not
        told = str(error).split("\n")[0]
        raise ValueError(
            f"--where cannot be evaluated on these values: {told}; change it"
        ) from error
