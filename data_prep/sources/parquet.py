"""Parquet files: the picture is a binary column, or a Hugging Face struct {bytes, path}.

Read by pyarrow's own row batches, not by `datasets` streaming: that starts threads which abort
the process (exit status 134) when a run ends early, so no error could end it in order.
Measured with datasets 5.2.0, pyarrow 26.0.1; huggingface/datasets#7467, huggingface_hub#4178.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.records import Record
from data_prep.sources.files import Files
from data_prep.sources.look import Looking, look_through
from data_prep.sources.plain_types import merge_types, plain_schema, plain_table
from data_prep.sources.source import ACCEPTED, READ_ROWS
from data_prep.sources.tables import TableSource

_TAIL_BYTES = 1 << 16  # of a file, read at once: most footers are shorter
_BATCH_BYTES = 128 << 20  # of values in memory at once, however small the file
_HEAD_BYTES = 32
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}  # encodings of values, of levels
_DICTIONARY = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


class ParquetSource(TableSource):
    """Files whose columns have the same names, and values of one kind in each."""

    def __init__(
        self,
        source: str,
        files: Files,
        image_column: str | None,
        image_root: str | None,
        looking: Looking | None = None,
    ) -> None:
        """looking: who reads the footers."""
        self.parts = files
        footers = read_footers(files, looking or Looking())
        self.counts, self.digests = footers.rows, footers.digests
        self.types = footers.schema
        super().__init__(source, footers.schema, sum(self.counts), image_column, image_root)

    def state(self) -> str:
        """Another after a file changed."""
        return self.parts.state()

    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the files, and what tells their content."""
        return [
            {"name": path.name, "bytes": self.parts.size(path), "footer_sha256": digest}
            for path, digest in zip(self.parts.paths, self.digests, strict=True)
        ]

    def tables(
        self, columns: list[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[str, int, pa.Table]]:
        """Rows in order, at most READ_ROWS at a time."""
        end = self.rows if stop is None else stop
        first = 0  # the number of a file's first row
        whole = self.image_column in columns
        for path, count in zip(self.parts.paths, self.counts, strict=True):
            if first < end and start < first + count:
                low, high = max(0, start - first), end - first
                reading = read_range(
                    self.parts, path, columns, low, high, whole=whole, types=self.types
                )
                for row, table in reading:
                    yield str(path), row, table
            first += count


def read_range(
    files: Files,
    path: Path,
    columns: list[str],
    start: int,
    stop: int,
    *,
    whole: bool = True,
    types: pa.Schema,
) -> Iterator[tuple[int, pa.Table]]:
    """Some rows of one file, as (number of the first row in the file, rows).

    whole: the columns are most of the file, which is worth bringing from afar. types: the columns'
    in all files.
    """
    opening = partial(pq.ParquetFile, page_checksum_verification=True)
    with closing(files.read(path, opening) if whole else files.glance(path, opening)) as parquet:
        groups: list[int] = []
        first = row = 0
        for group in range(parquet.num_row_groups):
            after = first + parquet.metadata.row_group(group).num_rows
            if first < stop and start < after:
                row = row if groups else first
                groups.append(group)
            first = after

        def head(place: int) -> bytes:
            return files.glance(path, partial(_head_of, place=place))

        for batch in _read_batches(path, parquet, groups, columns, head, threads=whole):
            low, high = max(0, start - row), min(batch.num_rows, stop - row)
            if low < high:
                table = pa.Table.from_batches([batch.slice(low, high - low)])
                yield row + low, plain_table(table, parquet.schema_arrow, types)
            row += batch.num_rows


def _read_batches(
    path: Path,
    parquet: pq.ParquetFile,
    groups: list[int],
    columns: list[str],
    head: Callable[[int], bytes],
    *,
    threads: bool,
) -> Iterator[pa.RecordBatch]:
    """Row groups, a few rows at a time. ValueError names the file if its content is damaged.

    threads: whether pyarrow's may read; none that reads from afar could end in order.
    """
    for group in groups:
        batches = parquet.iter_batches(
            batch_size=_rows_at_once(parquet.metadata.row_group(group), columns, head),
            row_groups=[group],
            columns=columns,
            use_threads=threads,
        )
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"source: {path} cannot be read to its end ({error}); get this file again, "
                    "or leave it out of --source"
                ) from error
            if batch is None:
                break
            yield batch


def _rows_at_once(
    group: pq.RowGroupMetaData, columns: list[str], head: Callable[[int], bytes]
) -> int:
    """READ_ROWS, or fewer where so many values could take more than _BATCH_BYTES: a file of a
    kilobyte can hold gigabytes, as one long text that every row points to.

    head: the file's first bytes from a place on.
    """
    row_bytes = 1.0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.split(".")[0] not in columns:
            continue
        # Plain values take what the file says; one of a dictionary may be all of it.
        row_bytes += column.total_uncompressed_size / max(group.num_rows, 1)
        encodings = set(column.encodings) - _PLAIN
        if encodings and column.total_uncompressed_size > _BATCH_BYTES / READ_ROWS:
            most = column.total_uncompressed_size
            if encodings <= _DICTIONARY and column.dictionary_page_offset is not None:
                most = min(most, _page_bytes(head(column.dictionary_page_offset), most))
            row_bytes += most
    return max(1, min(READ_ROWS, int(_BATCH_BYTES / row_bytes)))


def _page_bytes(head: bytes, unknown: int) -> int:
    """The size of a page's values, by its header in Thrift's compact protocol: its first fields are
    the page's type and that size, each a 32-bit number (parquet.thrift, PageHeader)."""
    at, value = 0, unknown
    for _ in range(2):
        if head[at : at + 1] != b"\x15":  # the next field, an i32
            return unknown
        value = shift = 0
        while True:
            at += 1
            if at >= len(head) or shift > 28:
                return unknown
            value |= (head[at] & 0x7F) << shift
            shift += 7
            if head[at] < 0x80:
                break
        at += 1
    return value >> 1  # zigzag


def _head_of(file: Path | RawIOBase, place: int) -> bytes:
    with file.open("rb") if isinstance(file, Path) else file as opened:
        opened.seek(place)
        return opened.read(_HEAD_BYTES) or b""


@dataclass(frozen=True, kw_only=True)
class _Footers:
    """What the ends of some files say."""

    schema: pa.Schema  # that all share
    rows: list[int]  # of each file
    digests: list[str]  # sha256 of each footer: places, sizes and extremes of all columns' parts


def read_footers(files: Files, looking: Looking | None = None) -> _Footers:
    """The footers of all files. ValueError names the odd file out."""
    schema: pa.Schema | None = None
    rows: list[int] = []
    digests: list[str] = []
    sizes = [files.size(path) for path in files.paths]
    asked = {"state": files.state()}
    found = look_through(_look_at_footer, files, sizes, asked, looking or Looking(), "files")
    for path, record in zip(files.paths, found, strict=True):
        own = pa.ipc.read_schema(pa.BufferReader(record["schema"].tobytes()))
        schema = own if schema is None else _merge(schema, own, path, files.paths[0])
        rows.append(record["rows"])
        digests.append(record["digest"])
    assert schema is not None
    return _Footers(schema=schema, rows=rows, digests=digests)


def _look_at_footer(files: Files, number: int) -> Record:
    """What the end of one file says: its columns, as Arrow writes them, and its rows."""
    file = files.paths[number]
    try:
        footer, digest = files.glance(file, _read_footer)
    except (pa.ArrowInvalid, OSError) as error:
        remedy = ACCEPTED
        if file.suffix.lower() == ".parquet":
            remedy = "get this file again, or leave it out of --source"
        raise ValueError(
            f"source={file}: not a readable Parquet file ({error}); {remedy}"
        ) from error
    try:
        schema = plain_schema(footer.schema.to_arrow_schema())
    except ValueError as error:
        raise ValueError(f"source: {file}: {error}") from error
    content = np.frombuffer(schema.serialize(), np.uint8)
    return {"schema": content, "rows": footer.num_rows, "digest": digest}


def _read_footer(file: Path | RawIOBase) -> tuple[pq.FileMetaData, str]:
    """A file's footer, and the sha256 of its bytes. Its length and a name end the file."""
    with file.open("rb") if isinstance(file, Path) else file as opened:
        size = opened.seek(0, os.SEEK_END)

        def last(count: int) -> bytes:
            opened.seek(max(size - count, 0))
            return opened.read() or b""

        tail = last(_TAIL_BYTES)
        if tail.endswith(b"PAR1"):
            footer = int.from_bytes(tail[-8:-4], "little") + 8
            tail = tail[-footer:] if footer <= len(tail) else last(footer)
    return pq.read_metadata(pa.BufferReader(tail)), hashlib.sha256(tail).hexdigest()


def _merge(known: pa.Schema, found: pa.Schema, file: Path, first: Path) -> pa.Schema:
    """The columns of all files up to this one. ValueError names it if they do not fit."""
    if found.names != known.names:
        raise ValueError(
            f"source: {file} has columns {found.names}, {first} has {known.names}; name files of "
            "one kind"
        )
    fields = []
    for column, other in zip(known, found, strict=True):
        try:
            fields.append(column.with_type(merge_types(column.type, other.type)))
        except ValueError as error:
            raise ValueError(
                f"source: column {column.name!r} is {other.type} in {file}, {column.type} in files "
                f"before it, from {first} on; name files of one kind, or write it alike in all "
                "(the names of a ClassLabel stand in a file's own metadata)"
            ) from error
    return pa.schema(fields, metadata=known.metadata)
