"""Tables of links (LAION, DataComp, CC12M) as the Parquet files that img2dataset is given."""

import csv
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from data_prep.sources.column_choice import (
    LINK_NAMES,
    choose_caption_column,
    holds_text,
    holds_texts,
    is_link,
    only_known,
)
from data_prep.sources.files import LocalFiles
from data_prep.sources.find import find_files
from data_prep.sources.parquet import read_footers
from data_prep.sources.path_tables import DELIMITERS, TABLE_SUFFIXES, first_cells
from pretrain.base.files import aside

SUFFIXES = (".parquet", *TABLE_SUFFIXES)
# img2dataset's own names for what it writes (`arguments_validator` in img2dataset/main.py).
RESERVED = frozenset(
    (
        *("key", "caption", "url", "width", "height", "original_width", "original_height"),
        *("status", "error_message", "exif", "md5", "sha256", "sha512"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are used."""

    url: str
    caption: str
    kept: list[str]  # that come along, into each picture's .json
    dropped: list[str]  # that cannot


def stage_tables(source: str, names: list[str] | None, folder: Path) -> tuple[pa.Schema, int]:
    """Fill `folder` with the table's files as Parquet, in order; returns columns and rows.

    Parquet is linked to. CSV, TSV and JSON Lines are written as Parquet, once. `names` are the
    columns' of tables without a first line of names. ValueError names what cannot be read.
    """
    files = find_files(source, SUFFIXES)
    folder.mkdir(parents=True, exist_ok=True)
    staged: list[Path] = []
    for number, file in enumerate(files):
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(f"table={file}: choose a file of {', '.join(SUFFIXES)}")
        target = folder / f"{number:05d}.{file.stem}.parquet"
        if file.suffix.lower() == ".parquet":
            target.unlink(missing_ok=True)
            target.symlink_to(file.resolve())
        elif not target.exists():
            convert(file, names, target)
        staged.append(target)
    schema, rows = read_footers(LocalFiles(staged))
    return schema, sum(rows)


def convert(file: Path, names: list[str] | None, target: Path) -> None:
    """Write a text table as Parquet. ValueError names a table that is not understood."""
    try:
        text = file.suffix.lower() in DELIMITERS
        reader = read_cells(file, names) if text else pa_json.open_json(file)
        with (
            closing(reader),
            aside(target) as part,
            pq.ParquetWriter(part, reader.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"table={file} cannot be read ({error}); mend the table") from error


def read_cells(file: Path, names: list[str] | None) -> pa_csv.CSVStreamingReader:
    """Rows of a CSV or TSV file. Without a line of names (CC12M) quotes in a TSV are text."""
    delimiter, cells = first_cells(file)
    headless = any(is_link(cell) for cell in cells)
    plain = headless and delimiter == "\t"
    if headless:
        if not plain:
            (cells,) = csv.reader([delimiter.join(cells)], delimiter=delimiter)
        names = names or guess_names(file, cells)
        if len(names) != len(cells):
            raise ValueError(
                f"columns={','.join(names)}: the first line of {file} has {len(cells)} cells; name "
                "as many with --columns"
            )
    return pa_csv.open_csv(
        file,
        read_options=pa_csv.ReadOptions(column_names=names if headless else None),
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter, quote_char=False if plain else '"', newlines_in_values=not plain
        ),
        convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(texts(), pa.string())),
    )


def texts() -> Iterator[str]:
    """Names of columns that are text even where the first ones look like numbers."""
    for name in ("url", "image_url", "caption", "text", "alt_text", "title"):
        yield from (name, name.upper())


def guess_names(file: Path, cells: list[str]) -> list[str]:
    """`url` and `caption` for the two cells of a first line that is a row already."""
    if len(cells) == 2 and is_link(cells[0]) != is_link(cells[1]):
        return ["url", "caption"] if is_link(cells[0]) else ["caption", "url"]
    raise ValueError(
        f"table={file} has no names of columns in its first line, which is {len(cells)} cells with "
        "a link; name them in order with --columns, e.g. --columns url,caption,score"
    )


def choose_columns(
    source: str, schema: pa.Schema, url: str | None, caption: str | None, used: str | None
) -> Columns:
    """Columns of the links and the captions: those asked for, or the well-known ones.

    `used` is one that img2dataset is told of besides. ValueError lists what there is.
    """
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    chosen = {
        "--url-column": url or only_known(text_columns(schema), "url", LINK_NAMES),
        "--caption-column": caption or choose_caption_column(schema),
        "--sha256-column": used,
    }
    for option, name in chosen.items():
        if (name is None and option != "--sha256-column") or (name and name not in schema.names):
            raise ValueError(f"{option}={name}: {source} has the columns {found}; choose one of it")
    url, caption = chosen["--url-column"], chosen["--caption-column"]
    assert url is not None and caption is not None
    others = [f for f in schema if f.name not in (url, caption, used)]
    kept = [f.name for f in others if f.name not in RESERVED and is_plain(f.type)]
    return Columns(
        url=url,
        caption=caption,
        kept=kept,
        dropped=[f.name for f in others if f.name not in kept],
    )


def text_columns(schema: pa.Schema) -> list[str]:
    """Columns of texts."""
    return [field.name for field in schema if holds_text(field.type)]


def is_plain(kind: pa.DataType) -> bool:
    """Whether JSON holds values of this type."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or holds_text(kind) or holds_texts(kind)


def table_files(source: str) -> list[dict[str, str | int]]:
    """Names and sizes of the table's files, in order. FileNotFoundError if there is none."""
    try:
        files = find_files(source, SUFFIXES)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"table={source}: no such file, no folder that holds {', '.join(SUFFIXES)}, and no "
            "pattern of such; name another TABLE"
        ) from None
    return [{"name": file.name, "bytes": file.stat().st_size} for file in files]
