"""Corpora on disk to records: Parquet files, and folders that Hugging Face `datasets` saved.

Parquet is read by pyarrow's own row batches, not by `datasets` streaming: that starts threads
which abort the process (exit status 134) when a run ends early, so no error could end it in order.
Measured with datasets 5.2.0, pyarrow 26.0.1; huggingface/datasets#7467, huggingface_hub#4178.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

READ_ROWS = 256  # rows in memory at once: at 4 MB a picture, 1 GB


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What is read"""

    source: str
    """Parquet corpus: a file, a folder (all *.parquet below it) or a glob pattern; or a folder
    that `Dataset.save_to_disk` of Hugging Face `datasets` wrote."""
    image_column: str = "image"
    """Column of the encoded pictures: binary, or a Hugging Face image struct {bytes, path}."""
    where: str | None = None
    """Keep the rows for which this SQL expression over the other columns is true, e.g.
    "split = 'train' AND artist != 'emojione'"."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a corpus. Text that is not UTF-8 stays bytes, for the reader to judge."""

    image: bytes | None
    columns: dict[str, Any]


class Corpus:
    """An opened corpus: its columns are known and its options checked before a row is read.

    FileNotFoundError or ValueError name the input, what was found, and the option to change.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self.saved = open_saved_dataset(Path(options.source))
        if self.saved is not None:
            self.files = sorted(Path(options.source).glob("*.arrow"))
            self.schema, self.rows = self.saved.features.arrow_schema, self.saved.num_rows
        else:
            self.files = find_parquet_files(options.source)
            self.schema, self.rows = read_footers(self.files)
        check_image_column(self.schema, options)
        self.columns = [name for name in self.schema.names if name != options.image_column]
        self.where = None if options.where is None else compile_where(options.where, self)

    def records(self, columns: list[str], *, with_images: bool) -> Iterator[Record]:
        """The rows that pass `where`, in file order, with the named columns.

        Pictures are not read from disk unless asked for: Parquet keeps columns apart.
        """
        image_column = self.options.image_column
        where_columns = [] if self.where is None else self.where.meta.root_names()
        wanted = set(columns) | set(where_columns) | ({image_column} if with_images else set())
        # A column must be asked for even if none is needed, or the rows could not be counted.
        needed = [name for name in self.schema.names if name in wanted] or self.columns[:1]
        for table in self.tables(needed):
            if self.where is not None:
                table = table.filter(self.matches(table.select(where_columns)))
            values = [column_values(table.column(name)) for name in columns]
            images: list[bytes | None] = [None] * table.num_rows
            if with_images:
                images = image_bytes(table.column(image_column))
            for row, image in enumerate(images):
                fields = {name: values[i][row] for i, name in enumerate(columns)}
                yield Record(image=image, columns=fields)

    def tables(self, needed: list[str]) -> Iterator[pa.Table]:
        """All rows, READ_ROWS at a time, with the needed columns."""
        if self.saved is not None:
            yield from self.saved.select_columns(needed).with_format("arrow").iter(READ_ROWS)
            return
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=READ_ROWS, columns=needed):
                    yield pa.Table.from_batches([batch])

    def matches(self, table: pa.Table) -> pa.ChunkedArray:
        """Which rows pass `where`; unknown counts as false, as in SQL."""
        frame = pl.DataFrame(table)
        return frame.select(self.where).to_series().to_arrow()


def open_saved_dataset(source: Path) -> Any:
    """The `datasets.Dataset` saved in a folder; None where the folder holds no such thing.

    ValueError for a folder of several splits: one of them is to be named.
    """
    if (source / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in source.glob("*/state.json"))
        raise ValueError(
            f"source={source} holds the splits {splits}: name one of these folders, e.g. "
            f"--source {source / splits[0] if splits else source}"
        )
    if not (source / "state.json").is_file() or not (source / "dataset_info.json").is_file():
        return None
    import datasets  # slow to import, and needed for this kind of source only

    return datasets.load_from_disk(str(source))


def find_parquet_files(source: str) -> list[Path]:
    """The files that a path, folder or pattern stands for, sorted. FileNotFoundError if none."""
    path = Path(source)
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207
    if not files:
        found = "a folder without *.parquet files" if path.is_dir() else "no such file or pattern"
        raise FileNotFoundError(f"source={source}: {found}; name a Parquet file, folder or glob")
    return files


def read_footers(files: list[Path]) -> tuple[pa.Schema, int]:
    """Schema shared by all files, and their row count. ValueError names the odd file out."""
    schema: pa.Schema | None = None
    rows = 0
    for file in files:
        try:
            footer = pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"source={file}: not a readable Parquet file ({error})") from error
        found = footer.schema.to_arrow_schema()
        if schema is not None and found.names != schema.names:
            raise ValueError(
                f"source: {file} has columns {found.names}, {files[0]} has {schema.names}; "
                "name files of one kind"
            )
        schema = found if schema is None else schema
        rows += footer.num_rows
    assert schema is not None
    return schema, rows


def check_image_column(schema: pa.Schema, options: SourceOptions) -> None:
    """ValueError unless the image column exists and holds encoded pictures."""
    name = options.image_column
    if name not in schema.names:
        raise ValueError(
            f"image_column={name!r} not found in {options.source}: it has columns "
            f"{schema.names}; choose one with --image-column"
        )
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"image_column={name!r} of {options.source} has type {schema.field(name).type}, needed "
            "binary or struct<bytes: binary, path: string>; choose another with --image-column"
        )


def compile_where(where: str, corpus: Corpus) -> pl.Expr:
    """The SQL expression, checked against the columns. ValueError if it is not a row test."""
    try:
        expression = pl.sql_expr(where)
        names = expression.meta.root_names()
        missing = [name for name in names if name not in corpus.columns]
        if missing:
            raise ValueError(
                f"where={where!r} names {missing}, not among the columns {corpus.columns} of "
                f"{corpus.options.source}; change --where"
            )
        empty = pl.DataFrame(corpus.schema.empty_table().select(names))
        kind = empty.select(expression).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"where={where!r} is not understood: {error}; change --where") from error
    if kind != pl.Boolean or not names:
        raise ValueError(
            f"where={where!r} gives {kind} over columns {names}, needed true or false for each "
            "row; change --where"
        )
    return expression


def image_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Encoded pictures of a binary or {bytes, path} column; None where there are no bytes.

    A `path` is never followed: a corpus must not choose which local files are read.
    """
    values = column.to_pylist()
    if pa.types.is_struct(column.type):
        return [None if value is None else value["bytes"] for value in values]
    return values


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
