"""Which kind of corpus stands at a path."""

from pathlib import Path

from data_prep.sources.folder import FolderSource, list_folder
from data_prep.sources.parquet import ParquetSource
from data_prep.sources.saved_datasets import SavedDatasetSource, is_saved_dataset
from data_prep.sources.source import ACCEPTED, Source
from data_prep.sources.tables import TableSource, refuse_bare_paths
from pretrain.shard_format import INDEX_FILE, MANIFEST_FILE


def open_source(source: str, image_column: str | None) -> Source:
    """The reader for what stands at `source`. ValueError or FileNotFoundError if none fits."""
    path = Path(source)
    if not path.is_dir():
        return open_tables(ParquetSource(source, image_column))
    if is_saved_dataset(path):
        return open_tables(SavedDatasetSource(path, image_column))
    if (path / MANIFEST_FILE).is_file() and any(path.glob(f"*/{INDEX_FILE}")):
        raise ValueError(
            f"source={source} is a dataset directory, ready for training; name the corpus that "
            "it was built from"
        )
    listing = list_folder(path)
    # Links too: a snapshot in the cache of huggingface_hub consists of them.
    parquet = any(path.rglob("*.parquet"))
    # Pictures without any text beside Parquet files are a README's illustrations.
    paired = len(listing.without_text()) < len(listing.pictures)
    if listing.pictures and (paired or not parquet):
        if image_column is not None:
            raise ValueError(
                f"image_column={image_column!r}: {source} is a folder of pictures, the files are "
                "the pictures; leave out --image-column"
            )
        return FolderSource(path, listing)
    if parquet and not listing.others[".tar"]:
        return open_tables(ParquetSource(source, image_column))
    raise ValueError(f"source={source} holds {listing.describe()}; {ACCEPTED}")


def open_tables(source: TableSource) -> TableSource:
    """The source, its pictures seen to be there."""
    refuse_bare_paths(source)
    return source
