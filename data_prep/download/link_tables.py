"""Tables of links (LAION, DataComp, CC12M) as the Parquet files that img2dataset is given."""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.sources.column_choice import (
    CAPTION_NAMES,
    LINK_NAMES,
    TITLE_NAMES,
    choose_caption_column,
    holds_text,
    holds_texts,
    is_link,
    only_known,
)
from data_prep.sources.files import LocalFiles
from data_prep.sources.parquet import read_footers
from data_prep.sources.path_tables import DELIMITERS, CellFormat, first_cells
from data_prep.sources.plain_tables import PlainTable, find_tables
from data_prep.sources.values import NUMBERS
from pretrain.base.files import aside

# img2dataset's own names for what it writes (`arguments_validator` in img2dataset/main.py).
_RESERVED = frozenset(
    (
        *("key", "caption", "url", "width", "height", "original_width", "original_height"),
        *("status", "error_message", "exif", "md5", "sha256", "sha512"),
    )
)


_GROUP_ROWS = 1 << 14  # of the Parquet files that are written


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are used."""

    url: str
    caption: str
    kept: list[str]  # that come along, into each picture's .json
    dropped: list[str]  # that cannot


def stage_tables(
    source: str, names: list[str] | None, folder: Path, texts: Collection[str] = ()
) -> tuple[pa.Schema, int]:
    """Fill `folder` with the table's files as Parquet, in order; returns columns and rows.

    Parquet is linked to. CSV, TSV and JSON Lines are written as Parquet, once. `names` are the
    columns' of tables without a first line of names; `texts` those that are text whatever they
    hold, as all of well-known names are. ValueError names what cannot be read.
    """
    files = find_tables("table", source)
    folder.mkdir(parents=True, exist_ok=True)
    staged = {
        file: folder / f"{number:05d}.{file.stem}.parquet" for number, file in enumerate(files)
    }
    written = [file for file in files if file.suffix.lower() != ".parquet"]
    for file in files:
        if file not in written:
            staged[file].unlink(missing_ok=True)
            staged[file].symlink_to(file.resolve())
    if missing := [file for file in written if not staged[file].exists()]:
        cells = [file for file in written if file.suffix.lower() in DELIMITERS]
        # Columns and types are those of all, whatever a kill has left.
        table = PlainTable(written, {file: _cell_format(file, names) for file in cells})
        known = {*LINK_NAMES, *CAPTION_NAMES, *TITLE_NAMES, *(name.lower() for name in texts)}
        as_text = {f.name for f in table.schema if f.name.lower() in known and _is_scalar(f.type)}
        as_text |= {f.name for f in table.schema if f.type == NUMBERS} & table.beyond_floats
        table.schema = pa.schema(
            (f.name, pa.string() if f.name in as_text else f.type) for f in table.schema
        )
        for file in missing:
            _convert(table, file, staged[file])
    footers = read_footers(LocalFiles(list(staged.values())))
    return footers.schema, sum(footers.rows)


def _convert(table: PlainTable, file: Path, target: Path) -> None:
    """Write a text table as Parquet. ValueError names the rows where it is no UTF-8."""
    schema = _numbers_alone(table.schema.empty_table()).schema
    with aside(target) as part, pq.ParquetWriter(part, schema) as writer:
        for places, rows in table.tables(file, table.columns, _GROUP_ROWS):
            rows = _numbers_alone(rows)
            try:
                rows.validate(full=True)
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"table={file} cannot be read ({error}), {places[0]} to {places[-1]}; write "
                    "the table in UTF-8"
                ) from error
            writer.write_table(rows)


def _numbers_alone(table: pa.Table) -> pa.Table:
    """The table with numbers as Parquet has them."""
    for i, field in enumerate(table.schema):
        if field.type == NUMBERS:
            table = table.set_column(i, field.name, pc.struct_field(table.column(i), 0))
    return table


def _cell_format(file: Path, names: list[str] | None) -> CellFormat:
    """How a text table is written: without a line of names (CC12M) quotes in a TSV are text."""
    delimiter, cells = first_cells(file)
    if not any(is_link(cell) for cell in cells):
        return CellFormat(delimiter=delimiter)
    plain = delimiter == "\t"
    if not plain:
        (cells,) = csv.reader([delimiter.join(cells)], delimiter=delimiter)
    names = names or _guess_names(file, cells)
    if len(names) != len(cells):
        raise ValueError(
            f"columns={','.join(names)}: the first line of {file} has {len(cells)} cells; name "
            "as many with --columns"
        )
    return CellFormat(delimiter=delimiter, names=names, quoted=not plain)


def _guess_names(file: Path, cells: list[str]) -> list[str]:
    """`url` and `caption` for the two cells of a first line that is a row already."""
    if len(cells) == 2 and is_link(cells[0]) != is_link(cells[1]):
        return ["url", "caption"] if is_link(cells[0]) else ["caption", "url"]
    raise ValueError(
        f"table={file} has no column names in its first line, which is {len(cells)} cells with "
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
        "--url-column": url or only_known(_text_columns(schema), "url", LINK_NAMES),
        "--caption-column": caption or choose_caption_column(schema),
        "--sha256-column": used,
    }
    for option, name in chosen.items():
        if (name is None and option != "--sha256-column") or (name and name not in schema.names):
            raise ValueError(
                f"{option}={name}: {source} has the columns {found}; choose one of them"
            )
    url, caption = chosen["--url-column"], chosen["--caption-column"]
    assert url is not None and caption is not None
    for option, name in (("--url-column", url), ("--caption-column", caption)):
        kind = schema.field(name).type
        if kind != NUMBERS and pa.types.is_nested(kind):
            raise ValueError(
                f"{option}={name}: {source} has lists or objects there, in some row at least, and "
                "img2dataset takes one text a row; name a column of texts, or write the one that "
                "you want into a column of its own"
            )
    others = [f for f in schema if f.name not in (url, caption, used)]
    kept = [f.name for f in others if f.name not in _RESERVED and _is_plain(f.type)]
    return Columns(
        url=url,
        caption=caption,
        kept=kept,
        dropped=[f.name for f in others if f.name not in kept],
    )


def _text_columns(schema: pa.Schema) -> list[str]:
    """Columns of texts."""
    return [field.name for field in schema if holds_text(field.type)]


def _is_plain(kind: pa.DataType) -> bool:
    """Whether JSON holds values of this type."""
    return _is_scalar(kind) or holds_texts(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    """Whether values of this type are single texts, numbers or truths."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind == NUMBERS or numbers or holds_text(kind)


def table_files(source: str) -> list[dict[str, str | int]]:
    """Names and sizes of the table's files, in order. FileNotFoundError if there is none."""
    files = find_tables("table", source)
    return [{"name": file.name, "bytes": file.stat().st_size} for file in files]
