"""A corpus whose options have been checked, and its rows that are wanted."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from data_prep.sources.column_choice import choose_caption_column
from data_prep.sources.kinds import open_source
from data_prep.sources.source import Record
from data_prep.sources.values import column_values
from data_prep.sources.where import compile_where, matching_rows


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What is read"""

    source: str
    """Parquet corpus: a file, a folder (all *.parquet below it) or a glob pattern; or a folder
    of pictures with their texts (NAME.jpg and NAME.txt, subfolders too; its columns are path,
    folder and caption); or a folder that `Dataset.save_to_disk` of Hugging Face `datasets`
    wrote."""
    image_column: str | None = None
    """Column of the encoded pictures: binary, or a Hugging Face image struct {bytes, path}. Null:
    `image`, or the only one with a well-known name (jpg, png, image_bytes and the like)."""
    where: str | None = None
    """Keep the rows for which this SQL expression over the other columns is true, e.g.
    "split = 'train' AND artist != 'emojione'"."""


class Corpus:
    """An opened corpus: its columns are known and its options checked before a row is read.

    FileNotFoundError or ValueError name the input, what was found, and the option to change.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.source = open_source(options.source, options.image_column)
        self.rows = self.source.rows
        self.columns: list[str] = self.source.schema.names
        self.caption_column = choose_caption_column(self.source.schema)
        self.where = None
        if options.where is not None:
            self.where = compile_where(options.where, options.source, self.source.schema)

    def records(self, columns: list[str], *, with_images: bool) -> Iterator[Record]:
        """The rows that pass `where`, in the source's order, with the named columns."""
        tested = [] if self.where is None else self.where.meta.root_names()
        needed = [name for name in self.columns if name in {*columns, *tested}]
        for batch in self.source.batches(needed, with_images=with_images):
            rows = list(range(batch.table.num_rows))
            if self.where is not None:
                rows = matching_rows(batch.table, self.where)
            table = batch.table.take(pa.array(rows, pa.int64()))
            values = [column_values(table.column(name)) for name in columns]
            for i, row in enumerate(rows):
                yield Record(
                    image=batch.image(row) if with_images else None,
                    columns={name: values[c][i] for c, name in enumerate(columns)},
                    place=batch.place(row),
                )
