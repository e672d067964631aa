"""Which kind of corpus stands at a path, and the reader for each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from data_prep.sources.far import BroughtFiles
from data_prep.sources.files import Files, LocalFiles, describe_files
from data_prep.sources.find import REMEDIES, expand_braces, find_files, refuse_address
from data_prep.sources.folder import FolderSource, Listing, describe_suffixes, list_folder
from data_prep.sources.links import LinkCounts, counts_of_tars
from data_prep.sources.look import Look, Looking
from data_prep.sources.parquet import ParquetSource
from data_prep.sources.path_tables import (
    TABLE_SUFFIXES,
    PathTableSource,
    find_metadata,
    find_tables,
)
from data_prep.sources.saved_datasets import SavedDatasetSource, is_saved_dataset
from data_prep.sources.source import ACCEPTED, Source
from data_prep.sources.stores import FarFormat
from data_prep.sources.tables import TableSource, refuse_bare_paths
from data_prep.sources.webdataset import WebDatasetSource
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE

Format = Literal["parquet", "saved", "folder", "webdataset", "table", "imagefolder"]
_FORMATS: tuple[Format, ...] = get_args(Format)
_USING_ROOT = ("parquet", "table", "imagefolder")


def open_source(
    source: str,
    kind: Format | None,
    image_column: str | None,
    image_root: str | None,
    look: Look | None,
    looking: Looking,
) -> tuple[Format, Source, Look | None]:
    """The reader for what stands at `source`, and what was found if it had to look through all.
    ValueError or FileNotFoundError if none fits.

    look: what was found earlier; of other files, it counts for nothing. looking: who looks else.
    """
    refuse_address("source", source)
    kind = kind or _detect(source)
    if image_root is not None:
        if kind not in _USING_ROOT:
            raise ValueError(
                f"image_root={image_root}: {source} is read as {kind}, which holds its pictures; "
                "leave out --image-root"
            )
        if not Path(image_root).is_dir():
            raise FileNotFoundError(f"image_root={image_root}: no such folder; change --image-root")
    if kind == "webdataset":
        files = LocalFiles(find_files(source, (".tar",)))
        asked = {"state": files.state(), "image_column": image_column}
        downloads = counts_of_tars(files.paths)
        return kind, *_open_tars(source, files, asked, look, looking, downloads)
    return kind, _OPENERS[kind](source, image_column, image_root, looking), None


def _open_tars(
    source: str,
    files: Files,
    asked: dict[str, Any],
    look: Look | None,
    looking: Looking,
    downloads: LinkCounts | None = None,
) -> tuple[WebDatasetSource, Look]:
    """WebDataset tars, looked through if the look there is is not of what is asked."""
    # A finished dataset knows its files by names and sizes.
    told = {"files": describe_files(files), "image_column": asked["image_column"]}
    known = look if look is not None and look.of in (asked, told) else None
    opened = WebDatasetSource(
        source, files, asked["image_column"], downloads, look=known, looking=looking
    )
    return opened, opened.look(asked)


def open_far(
    source: str,
    kind: FarFormat,
    files: BroughtFiles,
    image_column: str | None,
    image_root: str | None,
    look: Look | None,
    looking: Looking,
) -> tuple[Source, Look | None]:
    """The reader for files that lie far away, and what was found if it had to look through all.
    ValueError if it cannot read them.

    look: what was found earlier; of other files, it counts for nothing.
    """
    if image_root is not None:
        raise ValueError(
            f"image_root={image_root}: {source} is not on this machine, and its files contain "
            "their pictures; leave out --image-root"
        )
    opened: Source
    if kind == "webdataset":
        asked = {"state": files.state(), **files.origin, "image_column": image_column}
        opened, look = _open_tars(source, files, asked, look, looking)
    else:
        opened = _with_pictures(ParquetSource(source, files, image_column, None, looking))
        look = None
    size = sum(files.size(path) for path in files.paths)
    if files.left_alone:
        others = describe_suffixes(files.left_alone)
        opened.notes.append(f"files of other kinds are left alone: {others}")
    told = f"{len(files.paths):,} files, {size / 1e6:,.1f} MB, are read"
    if commit := files.origin.get("commit"):
        told += f" at commit {commit[:12]}"
    opened.notes.append(told)
    return opened, look


def _detect(source: str) -> Format:
    """The format of what stands at a path, folder or pattern. ValueError if it is none."""
    path = Path(source)
    if not path.is_dir():
        named = source if path.is_file() else expand_braces(source, "source")[0]
        suffix = Path(named).suffix.lower()  # of a pattern, too
        if suffix == ".tar":
            return "webdataset"
        return "table" if suffix in TABLE_SUFFIXES else "parquet"
    if is_saved_dataset(path):
        return "saved"
    if (path / MANIFEST_FILE).is_file() and any(path.glob(f"*/{INDEX_FILE}")):
        raise ValueError(
            f"source={source} is a dataset directory, ready for training; name the corpus that "
            "it was built from"
        )
    parquet = any(file.suffix.lower() == ".parquet" for file in path.rglob("*"))
    return _detect_folder(source, list_folder(path), parquet)


def _detect_folder(source: str, listing: Listing, parquet: bool) -> Format:
    """The format of a folder. `parquet` counts links too: huggingface_hub's cache is of them."""
    if listing.others[".tar"]:
        return "webdataset"  # Parquet beside tars tells of the downloads, and holds no pictures
    if listing.metadata and listing.pictures:
        return "imagefolder"
    # Pictures without any text beside Parquet files are a README's illustrations.
    paired = len(listing.without_text()) < len(listing.pictures)
    if listing.pictures and (paired or not parquet):
        return "folder"
    if parquet:
        return "parquet"
    remedy = "".join(
        f"; {ending}: {REMEDIES[ending]}" for ending in sorted(listing.others) if ending in REMEDIES
    )
    raise ValueError(
        f"source={source} holds {listing.describe()}{remedy}; {ACCEPTED}; --format names one of "
        f"{list(_FORMATS)}"
    )


def _open_parquet(
    source: str, image_column: str | None, image_root: str | None, looking: Looking
) -> Source:
    """Parquet files, their pictures seen to be there."""
    files = LocalFiles(find_files(source, (".parquet",)))
    return _with_pictures(ParquetSource(source, files, image_column, image_root, looking))


def _open_saved(
    source: str, image_column: str | None, image_root: str | None, looking: Looking
) -> Source:
    """A folder saved by Hugging Face `datasets`, its pictures seen to be there."""
    del image_root, looking
    return _with_pictures(SavedDatasetSource(Path(source), image_column))


def _open_folder(
    source: str, image_column: str | None, image_root: str | None, looking: Looking
) -> Source:
    """A folder of pictures with their texts."""
    del image_root, looking
    if image_column is not None:
        raise ValueError(
            f"image_column={image_column!r}: {source} is a folder of pictures, the files are "
            "the pictures; leave out --image-column"
        )
    return FolderSource(Path(source), list_folder(Path(source)))


def _open_table(
    source: str, image_column: str | None, image_root: str | None, looking: Looking
) -> Source:
    """CSV, TSV or JSON Lines of paths."""
    return PathTableSource(source, find_tables(source), image_column, image_root, looking)


def _open_imagefolder(
    source: str, image_column: str | None, image_root: str | None, looking: Looking
) -> Source:
    """Pictures with metadata.csv or metadata.jsonl beside them."""
    return PathTableSource(source, find_metadata(source), image_column, image_root, looking)


def _with_pictures(source: TableSource) -> TableSource:
    """The source, its pictures seen to be there."""
    refuse_bare_paths(source)
    return source


_Opener = Callable[[str, str | None, str | None, Looking], Source]
_OPENERS: dict[Format, _Opener] = {
    "parquet": _open_parquet,
    "saved": _open_saved,
    "folder": _open_folder,
    "table": _open_table,
    "imagefolder": _open_imagefolder,
}
