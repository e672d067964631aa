"""Folders that `Dataset.save_to_disk` of Hugging Face `datasets` wrote."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.sources.files import state_of
from data_prep.sources.plain_types import plain_schema, plain_table
from data_prep.sources.source import READ_ROWS
from data_prep.sources.tables import TableSource


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder: one split, or a dictionary of them."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


class SavedDatasetSource(TableSource):
    """One saved split. ValueError for a folder of several: one of them is to be named."""

    def __init__(self, folder: Path, image_column: str | None) -> None:
        if (folder / "dataset_dict.json").is_file():
            splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
            raise ValueError(
                f"source={folder} holds the splits {splits}: name one of these folders, e.g. "
                f"--source {folder / splits[0] if splits else folder}"
            )
        import datasets  # slow to import, and needed for this kind of source only

        self.folder = folder
        try:
            self.saved = datasets.load_from_disk(str(folder))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"source={folder} cannot be read ({error}); save the dataset again"
            ) from error
        schema = plain_schema(self.saved.features.arrow_schema)
        super().__init__(str(folder), schema, self.saved.num_rows, image_column)

    def state(self) -> str:
        """Another after a file changed."""
        return state_of([self.folder / "state.json", *sorted(self.folder.glob("*.arrow"))])

    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the Arrow files."""
        paths = sorted(self.folder.glob("*.arrow"))
        return [{"name": path.name, "bytes": path.stat().st_size} for path in paths]

    def tables(
        self, columns: list[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[str, int, pa.Table]]:
        """Rows in order, READ_ROWS at a time."""
        first = start
        rows = self.saved.select(range(start, self.rows if stop is None else stop))
        for table in rows.select_columns(columns).with_format("arrow").iter(READ_ROWS):
            yield str(self.folder), first, plain_table(table, self.saved.features.arrow_schema)
            first += table.num_rows
