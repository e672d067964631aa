"""CSV, TSV and JSON Lines files of paths and captions; `imagefolder` of Hugging Face is one."""

import codecs
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.sources.column_choice import choose_path_column, refuse_links
from data_prep.sources.columns import ColumnTypes, cell_value
from data_prep.sources.files import state_of
from data_prep.sources.find import find_files
from data_prep.sources.folder import METADATA_FILES
from data_prep.sources.look import Looking, look_through
from data_prep.sources.picture_files import PictureRoot
from data_prep.sources.rows import MARKED_ROWS, Marks, Row, RowSource, parse_object

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (*DELIMITERS, *LINES_SUFFIXES)
# No row is as long; a binary file without line ends, or an open quote, must not fill the memory.
LINE_CHARS_CAP = 1 << 24
csv.field_size_limit(LINE_CHARS_CAP)  # of a cell; the module's own limit is shorter than some texts
_LOOKED_AT = 1000  # rows among which a picture must be found, or the root is wrong

# Where a row begins in a table: (as the open file tells it, lines before it).
_Position = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class CellFormat:
    """How a CSV or TSV file is written."""

    delimiter: str
    names: list[str] | None = None  # of the columns; None: the first line has them
    quoted: bool = True  # a cell may stand in quotes


class PathTableSource(RowSource):
    """Tables in the order of their paths; each row names a picture below the table's folder.

    Columns: the tables' own, the path too, and `table` (relative path) where there are several.
    """

    def __init__(
        self,
        source: str,
        tables: list[Path],
        image_column: str | None,
        image_root: str | None,
        looking: Looking | None = None,
    ) -> None:
        """looking: who looks through the tables."""
        self.paths = tables
        self.base = Path(source) if Path(source).is_dir() else None
        self.roots = {
            path: PictureRoot(Path(image_root) if image_root is not None else path.parent)
            for path in tables
        }
        self.notes = []
        self.image_column = self._choose_column(source, image_column)
        if image_column is None:
            self.notes.append(f"paths of pictures are read from column {self.image_column!r}")
        types, marks = ColumnTypes(), []
        sizes = [path.stat().st_size for path in tables]
        asked = {"state": self.state(), "base": str(self.base)}
        for record in look_through(
            _look_at_table, (self.paths, self.base), sizes, asked, looking or Looking(), "tables"
        ):
            types.add(record["types"])
            marks.append((record["rows"], record["marks"]))
        self.marks = Marks.join(marks)
        self.rows = sum(rows for rows, _ in marks)
        self.schema = pa.schema(types.fields())

    def _choose_column(self, source: str, image_column: str | None) -> str:
        """The column of the paths, one of whose first rows leads to a file. ValueError if none
        does."""
        first_rows = (
            (path, place, record)
            for path in self.paths
            for place, record, _ in _records_of(self.paths, self.base, path)
        )
        chosen, missed = None, ""
        for path, place, record in islice(first_rows, _LOOKED_AT):
            chosen = chosen or choose_path_column(source, record, image_column)
            value = record.get(chosen)
            if self.roots[path].holds(value if isinstance(value, str) else None):
                return chosen
            missed = missed or f"{place}: {value!r}"
        if chosen is None:
            raise ValueError(f"source={source} has no rows; name another --source")
        root = next(iter(self.roots.values())).root
        raise ValueError(
            f"no file is found for the column {chosen!r} of {source}, e.g. {missed}, below {root}; "
            "name the pictures' folder with --image-root, or another column with --image-column"
            + (", or write the paths with / instead of \\" if "\\" in missed else "")
        )

    def state(self) -> str:
        """Another after a file changed."""
        return state_of(self.paths)

    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the tables."""
        return [{"name": path.name, "bytes": path.stat().st_size} for path in self.paths]

    def read_rows(self, file: int, place: tuple[int, int]) -> Iterator[Row]:
        """All rows from a place in a table on."""
        assert self.image_column is not None
        begin = place if place[0] else None
        for path in self.paths[file:]:
            for where, record, _ in _records_of(self.paths, self.base, path, begin):
                value = record.get(self.image_column)
                yield self.make_row(self.roots[path], value, record, where)
            begin = None

    def make_row(self, root: PictureRoot, value: Any, record: dict[str, Any], place: str) -> Row:
        """One row, whose picture lies at the path `value`, if that is one."""
        path = value if isinstance(value, str) else None
        return Row(columns=record, image=lambda: root.read(path), place=place)


def _records_of(
    paths: list[Path], base: Path | None, path: Path, begin: _Position | None = None
) -> Iterator[tuple[str, dict[str, Any], Callable[[], _Position]]]:
    """Each row of one of the tables: its place, its columns, and what tells where the next begins.

    base: the folder in which they lie, if that was named.
    """
    read = read_lines if path.suffix.lower() in LINES_SUFFIXES else read_cells
    for line, record, tell in read(path, begin):
        if len(paths) > 1:
            name = path.relative_to(base) if base else path.name
            record = {"table": str(name), **record}
        yield f"{path} line {line}", record, tell


def _look_at_table(state: tuple[list[Path], Path | None], number: int) -> dict[str, Any]:
    """How many rows a table has, its columns' kinds of value, and marks of its rows."""
    paths, base = state
    types = ColumnTypes()
    marks: list[tuple[int, int, int]] = []
    rows = 0
    for _, record, next_row in _records_of(paths, base, paths[number]):
        rows += 1
        types.see(record)
        if rows == 1:
            marks.append((0, 0, 0))
        if rows % MARKED_ROWS == 0:
            marks.append((rows, *next_row()))
    return {"rows": rows, "types": types.plain(), "marks": marks}


def find_tables(source: str) -> list[Path]:
    """The tables that a path, folder or pattern stands for."""
    return find_files(source, TABLE_SUFFIXES)


def find_metadata(source: str) -> list[Path]:
    """The metadata tables of an `imagefolder`."""
    return find_files(source, METADATA_FILES)


def read_cells(
    path: Path, begin: _Position | None = None, form: CellFormat | None = None
) -> Iterator[tuple[int, dict[str, Any], Callable[[], _Position]]]:
    """Rows of a CSV or TSV file by its first line's names, after their line numbers.

    Without `form`, links are refused. ValueError names the line that has more or fewer cells, a
    cell of over LINE_CHARS_CAP characters, or an open quote.
    """
    if form is None:
        delimiter, cells = first_cells(path)
        refuse_links(str(path), cells)
        form = CellFormat(delimiter=delimiter)
    delimiter = form.delimiter
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Not the file itself, which tells no position while it is iterated over.
        reader = csv.reader(
            iter(file.readline, ""),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE,
            strict=True,
        )
        skipped = 0

        def tell() -> _Position:
            return file.tell(), skipped + reader.line_num

        try:
            names = form.names or next(reader, [])
            if len(set(names)) < len(names):
                raise ValueError(f"source: {path} names a column twice: {names}; rename one")
            if begin is not None:
                skipped = begin[1] - reader.line_num
                file.seek(begin[0])
            for cells in reader:
                line = skipped + reader.line_num
                if not cells:
                    continue  # an empty line
                if len(cells) != len(names):
                    raise ValueError(
                        f"source: {path} line {line} has {len(cells)} cells, {len(names)} "
                        f"columns have names, {names}; fix the line (cells with {delimiter!r}, "
                        "quotes or line ends stand in double quotes)"
                    )
                yield line, dict(zip(names, map(cell_value, cells), strict=True)), tell
        except csv.Error as error:
            line = skipped + reader.line_num
            long = "field limit" in str(error)
            said = f"a cell has over {LINE_CHARS_CAP:,} characters" if long else error
            shorten = "shorten the cell, or close its quote" if long else "fix the line"
            raise ValueError(
                f"source: {path} line {line}: {said}; {shorten} (a cell that "
                "begins with a quote ends with one, quotes inside are doubled)"
            ) from error


def _refuse_other_text(path: Path) -> None:
    """ValueError for a table that is not written in UTF-8, or begins with a line for Excel."""
    with path.open("rb") as file:
        head = file.read(4096)
    found = None
    if head.startswith(b"\x1f\x8b"):
        found = "is compressed (gzip); decompress it first"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        found = "is UTF-16, or no text; write it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
    elif head.removeprefix(codecs.BOM_UTF8).lower().startswith(b"sep="):
        found = "begins with a line sep=…, which is for Excel; remove that line"
    if found is not None:
        raise ValueError(f"source: {path} {found}")


def first_cells(path: Path) -> tuple[str, list[str]]:
    """The delimiter of a CSV or TSV file, and its first line cut there, quotes as they are.

    ValueError if it is no text in UTF-8.
    """
    _refuse_other_text(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        line = file.readline(LINE_CHARS_CAP).rstrip("\n")
    delimiter = _choose_delimiter(path, line)
    return delimiter, line.split(delimiter)


def _choose_delimiter(path: Path, first: str) -> str:
    """Tab or comma by the file's suffix; the first line tells where a .csv has other ones."""
    usual = DELIMITERS.get(path.suffix.lower(), ",")
    if usual in first:
        return usual
    return next((other for other in ("\t", ";", "|") if other in first), usual)


def read_lines(
    path: Path, begin: _Position | None = None
) -> Iterator[tuple[int, dict[str, Any], Callable[[], _Position]]]:
    """Rows of a JSON Lines file, after their line numbers. ValueError names a line that is none."""
    _refuse_other_text(path)
    with path.open("rb") as file:
        offset, number = begin or (0, 0)
        file.seek(offset)

        def tell() -> _Position:
            return file.tell(), number

        while line := file.readline(LINE_CHARS_CAP):
            number += 1
            if not line.strip():
                continue
            record = parse_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            if record is None:
                remedy = "fix or remove the line"
                if len(line) == LINE_CHARS_CAP:
                    remedy = f"a line may have {LINE_CHARS_CAP:,} bytes, shorten it"
                elif number == 1 and line.lstrip().startswith(b"["):
                    remedy = "an array is no JSON Lines: write an object a line (jq -c '.[]')"
                raise ValueError(
                    f"source: {path} line {number} is no JSON object ({line[:60]!r}); {remedy}"
                )
            yield number, record, tell
