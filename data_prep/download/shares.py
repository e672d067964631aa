"""A share of a table of links: its rows, as Parquet files of its own for img2dataset."""

from pathlib import Path

import pyarrow.parquet as pq

from data_prep.download.link_tables import Columns
from pretrain.base.files import aside

_FOLDER = "share-{:05d}"


def share_folder(out: Path, number: int | None) -> Path:
    """Where a share's tars lie; where the table is not shared, in `out`."""
    return out if number is None else out / _FOLDER.format(number)


def folders_of(out: Path) -> list[Path]:
    """All folders in which a download's tars may lie."""
    return [out, *sorted(out.glob(_FOLDER.partition("{")[0] + "*"))]


def stage_share(
    tables: Path, rows: range, columns: Columns, used: str | None, folder: Path
) -> None:
    """Fill `folder` with the share's rows of the Parquet files in `tables`, file by file.

    A file that belongs to the share whole is linked to. What is there already is the same.
    used: a column besides, of the checksums.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [columns.url, columns.caption, *columns.kept, *([used] if used else [])]
    first = 0
    for file in sorted(tables.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            count = parquet.metadata.num_rows
            inside = range(max(rows.start - first, 0), min(rows.stop - first, count))
            first += count
            target = folder / file.name
            if not inside or target.exists():
                continue
            if len(inside) == count:
                target.unlink(missing_ok=True)  # a link that leads nowhere
                target.symlink_to(file.resolve())
            else:
                _write_rows(parquet, inside, names, target)


def _write_rows(parquet: pq.ParquetFile, rows: range, names: list[str], target: Path) -> None:
    """Some rows and columns of a file as a file of their own, a row group at a time."""
    empty = parquet.schema_arrow.empty_table().select(names)
    first = 0
    with aside(target) as part, pq.ParquetWriter(part, empty.schema) as writer:
        for number in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(number).num_rows
            start, stop = max(rows.start - first, 0), min(rows.stop - first, count)
            if start < stop:
                group = parquet.read_row_group(number, columns=names).select(names)
                writer.write_table(group.slice(start, stop - start))
            first += count
