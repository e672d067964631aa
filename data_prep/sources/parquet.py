"""Parquet files: the picture is a binary column, or a Hugging Face struct {bytes, path}.

Read by pyarrow's own row batches, not by `datasets` streaming: that starts threads which abort
the process (exit status 134) when a run ends early, so no error could end it in order.
Measured with datasets 5.2.0, pyarrow 26.0.1; huggingface/datasets#7467, huggingface_hub#4178.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.find import find_files
from data_prep.sources.source import ACCEPTED, READ_ROWS
from data_prep.sources.tables import TableSource


class ParquetSource(TableSource):
    """A file, a folder of files, or a glob pattern."""

    def __init__(self, source: str, image_column: str | None, image_root: str | None) -> None:
        self.paths = find_files(source, (".parquet",))
        schema, rows = read_footers(self.paths)
        super().__init__(source, schema, rows, image_column, image_root)

    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the files."""
        return [{"name": path.name, "bytes": path.stat().st_size} for path in self.paths]

    def tables(self, columns: list[str]) -> Iterator[tuple[str, int, pa.Table]]:
        """All rows, READ_ROWS at a time."""
        for path in self.paths:
            first = 0
            for batch in read_batches(path, columns):
                yield str(path), first, pa.Table.from_batches([batch])
                first += batch.num_rows


def read_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """One file, READ_ROWS rows at a time. ValueError names it if its content is damaged."""
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        batches = parquet.iter_batches(batch_size=READ_ROWS, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"source: {path} cannot be read to its end ({error}); get this file again, "
                    "or leave it out of --source"
                ) from error
            if batch is None:
                return
            yield batch


def read_footers(files: list[Path]) -> tuple[pa.Schema, int]:
    """Schema shared by all files, and their row count. ValueError names the odd file out."""
    schema: pa.Schema | None = None
    rows = 0
    for file in files:
        try:
            footer = pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError) as error:
            remedy = ACCEPTED
            if file.suffix == ".parquet":
                remedy = "get this file again, or leave it out of --source"
            raise ValueError(
                f"source={file}: not a readable Parquet file ({error}); {remedy}"
            ) from error
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
