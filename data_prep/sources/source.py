"""What every kind of corpus offers: columns that are known, and batches of rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from data_prep.rejection import Reason
from data_prep.sources.links import LinkCounts

READ_ROWS = 256  # rows in memory at once: at 4 MB a picture, 1 GB where a batch holds pictures

ACCEPTED = (
    "a source is Parquet with the pictures in a column (a file, a folder, or 'DIR/*.parquet'), "
    "WebDataset tars, a folder of pictures with their texts (NAME.jpg and NAME.txt or NAME.json), "
    "a CSV, TSV or JSONL file of paths and captions, a folder saved by Dataset.save_to_disk of "
    "Hugging Face datasets, or Parquet or tars of a dataset on the hub (hf://datasets/OWNER/NAME)"
)


@dataclass(frozen=True, kw_only=True)
class FilePlace:
    """Where a picture's bytes lie as they are, in a file of the source."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a corpus. Text that is not UTF-8 stays bytes, for the reader to judge."""

    image: bytes | None
    refused: Reason | None = None  # why there is no picture, where its reader knows
    columns: dict[str, Any]
    place: str = field(compare=False)  # for people: where in the corpus it stands
    number: int = field(compare=False)  # of the row in the whole source, from 0
    stored: FilePlace | None = field(default=None, compare=False)  # of a tar's member


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Some rows in order. A picture may be read only when it is asked for, by its row here.

    `image` raises RejectedError where a row's picture cannot be had.
    """

    table: pa.Table
    image: Callable[[int], bytes | None]
    place: Callable[[int], str]
    stored: Callable[[int], FilePlace | None] = lambda _: None


class Source(Protocol):
    """An opened corpus of one kind. Opening it raises ValueError or FileNotFoundError."""

    schema: pa.Schema  # the columns; the pictures are not among them
    rows: int
    notes: list[str]  # what was decided or left alone, a line each, for the user to see
    downloads: LinkCounts | None  # what became of the links, where img2dataset fetched it

    @property
    def image_column(self) -> str | None:
        """The column of the pictures; None where they are files of their own."""

    def files(self) -> list[dict[str, Any]]:
        """What was read, for the manifest: by name, never by a path of this machine."""

    def state(self) -> str:
        """Another after any file that is read changed, by sizes and times."""

    def batches(
        self, columns: list[str], *, with_images: bool, start: int = 0, stop: int | None = None
    ) -> Iterator[RowBatch]:
        """The rows from `start` to before `stop` in order, with the named columns.

        What lies before `start` costs next to nothing, so that many processes can share a corpus.
        """
