"""A folder of pictures, each with its text in a file beside it: NAME.jpg and NAME.txt or .json."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.rejection import RejectedError
from data_prep.sources.columns import to_array
from data_prep.sources.links import LinkCounts
from data_prep.sources.picture_files import read_bounded
from data_prep.sources.sidecars import Sidecars, caption_name, look_into, sidecar_notes, stem
from data_prep.sources.source import READ_ROWS, RowBatch
from pretrain.dataset.pictures import SUFFIXES

TEXT_SUFFIX, METADATA_SUFFIX = ".txt", ".json"
_TABLES = (".csv", ".jsonl", ".parquet", ".tsv")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # huggingface.co/docs/datasets/image_dataset


@dataclass(kw_only=True)
class Listing:
    """The files below a folder, by paths relative to it. Hidden names are not looked at."""

    pictures: list[str] = field(default_factory=list)  # in bytewise order
    texts: dict[str, str] = field(default_factory=dict)  # path without suffix -> path
    sidecars: dict[str, str] = field(default_factory=dict)  # likewise, of .json beside pictures
    others: Counter[str] = field(default_factory=Counter)  # suffix -> files
    metadata: list[str] = field(default_factory=list)  # tables of an imagefolder, among the others
    tables: list[str] = field(default_factory=list)  # that may hold captions, among the others
    links: list[str] = field(default_factory=list)  # symbolic links that are not followed

    def without_text(self) -> list[str]:
        """Pictures beside which neither a text nor metadata lies."""
        beside = self.texts.keys() | self.sidecars.keys()
        return [path for path in self.pictures if stem(path) not in beside]

    def describe(self) -> str:
        """What was found, on one line."""
        counts = Counter(Path(path).suffix.lower() for path in self.pictures) + self.others
        counts[TEXT_SUFFIX] += len(self.texts)
        counts[METADATA_SUFFIX] += len(self.sidecars)
        counts["symbolic links out of it"] += len(self.links)
        return describe_suffixes(+counts) or "no files"


def list_folder(folder: Path) -> Listing:
    """Everything below a folder. A link is followed only to a file that lies below it, too."""
    listing = Listing()
    root = str(folder)
    inside = folder.resolve()
    for entry in _walk_files(root):
        path = os.fspath(entry.path)[len(root) :].lstrip("/")
        suffix = Path(entry.name).suffix.lower()
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            if not (target.is_relative_to(inside) and target.is_file()):
                listing.links.append(path)
                continue
        if not entry.is_file():
            listing.others["special file"] += 1
        elif suffix in SUFFIXES:
            listing.pictures.append(path)
        elif suffix == TEXT_SUFFIX:
            # Of a.TXT and a.txt the latter, in whichever order the disk names them.
            listing.texts[stem(path)] = max(path, listing.texts.get(stem(path), ""))
        elif suffix == METADATA_SUFFIX:
            listing.sidecars[stem(path)] = max(path, listing.sidecars.get(stem(path), ""))
        else:
            listing.others[suffix or "without suffix"] += 1
            if suffix in _TABLES:
                listing.tables.append(path)
            if entry.name in METADATA_FILES:
                listing.metadata.append(path)
    stems = {stem(path) for path in listing.pictures}
    for lonely in listing.sidecars.keys() - stems:
        del listing.sidecars[lonely]  # statistics of a download, settings of a tool
        listing.others[METADATA_SUFFIX] += 1
    listing.pictures.sort(key=os.fsencode)
    listing.links.sort(key=os.fsencode)
    return listing


def _walk_files(root: str) -> Iterator[os.DirEntry[str]]:
    """All that is not a folder, in the disk's order, without hidden names."""
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield entry


class FolderSource:
    """Pictures and their sidecars as files.

    Columns: path, folder (the last one's name), caption (the .txt, or else the .json's), and what
    else stands at the top level of the .json.
    """

    image_column = None
    downloads: LinkCounts | None = None

    def __init__(self, root: Path, listing: Listing) -> None:
        self.root = root
        self.pictures = listing.pictures
        self.sidecars = Sidecars(root=root, texts=listing.texts, metadata=listing.sidecars)
        self.rows = len(self.pictures)
        self.listing_sha256: str | None = None
        self.schema, found = look_into(self.sidecars, self.pictures)
        self.notes = _listing_notes(root, listing) + sidecar_notes(found)

    def state(self) -> str:
        """Another after a file changed."""
        changes, listing = hashlib.sha256(), hashlib.sha256()
        sidecars = (self.sidecars.texts, self.sidecars.metadata)
        found = [sorted(paths.values(), key=os.fsencode) for paths in sidecars]
        for path in chain(self.pictures, *found):
            told = (self.root / path).stat()
            named = b"%s\0%d" % (os.fsencode(path), told.st_size)
            listing.update(named + b"\n")
            changes.update(b"%s %d\n" % (named, told.st_mtime_ns))
        self.listing_sha256 = listing.hexdigest()
        return changes.hexdigest()

    def files(self) -> list[dict[str, Any]]:
        """The folder's name, how many files of each kind are in it, and a digest of their names and
        sizes."""
        counts = {"pictures": len(self.pictures), "texts": len(self.sidecars.texts)}
        if self.sidecars.metadata:
            counts["metadata"] = len(self.sidecars.metadata)
        if self.listing_sha256 is None:
            self.state()
        name = self.root.resolve().name
        return [{"name": name, **counts, "listing_sha256": self.listing_sha256}]

    def batches(
        self, columns: list[str], *, with_images: bool, start: int = 0, stop: int | None = None
    ) -> Iterator[RowBatch]:
        """Pictures by their paths' bytes; each is read when it is asked for."""
        end = self.rows if stop is None else stop
        for first in range(start, end, READ_ROWS):
            paths = self.pictures[first : min(first + READ_ROWS, end)]
            yield self.make_batch(paths, columns or ["path"], with_images)

    def make_batch(self, paths: list[str], columns: list[str], with_images: bool) -> RowBatch:
        """The rows of some pictures. Their sidecars are read now, if they are wanted."""
        metadata: list[dict[str, Any] | None] = [{} for _ in paths]
        if with_images or not {"path", "folder"}.issuperset(columns):
            metadata = [self.sidecars.read_metadata(path) for path in paths]

        def image(row: int) -> bytes:
            if metadata[row] is None:
                raise RejectedError("metadata_unreadable")
            return read_bounded(self.root / paths[row])

        return RowBatch(
            table=pa.table({name: self.column(name, paths, metadata) for name in columns}),
            image=image,
            place=lambda row: str(self.root / paths[row]),
        )

    def column(
        self, name: str, paths: list[str], metadata: list[dict[str, Any] | None]
    ) -> pa.Array:
        """One column of these pictures' rows."""
        kind = self.schema.field(name).type
        if name == "caption":
            pairs = zip(paths, metadata, strict=True)
            return to_array([self.caption(path, values or {}) for path, values in pairs], kind)
        if name in ("path", "folder"):
            if name == "folder":
                paths = [Path(path).parent.name for path in paths]
            # A file's name may be any bytes, a column's text may not.
            return pa.array([os.fsencode(path).decode("utf-8", "replace") for path in paths])
        return to_array([(values or {}).get(name) for values in metadata], kind)

    def caption(self, picture: str, values: dict[str, Any]) -> Any:
        """The text beside a picture, or else what its metadata calls a caption, or None."""
        text = self.sidecars.read_text(picture)
        if text is not None:
            return text
        name = caption_name(values)
        return None if name is None else values[name]


def table_in(root: Path, listing: Listing) -> str:
    """Where captions may be meant to come from, of a folder that has none: a hint, or nothing."""
    if not listing.tables:
        return ""
    first = min(listing.tables)
    return f"; {first} lies in it: --source {root / first}"


def _listing_notes(root: Path, listing: Listing) -> list[str]:
    """What a user may not expect of the folder, a line each."""
    notes: list[str] = []
    bare = listing.without_text()
    if bare:
        notes.append(
            f"pictures without a .txt or .json beside them: {len(bare):,} of "
            f"{len(listing.pictures):,}, e.g. {bare[0]}; their column caption is empty"
        )
    if len(bare) == len(listing.pictures):
        notes[-1] += (
            table_in(root, listing) or ' (--caption "caption=a photo of {folder}" needs no texts)'
        )
    stems = {stem(path) for path in listing.pictures}
    orphans = sorted(path for key, path in listing.texts.items() if key not in stems)
    if orphans:
        notes.append(f"texts without a picture beside them: {len(orphans):,}, e.g. {orphans[0]}")
    if listing.others:
        notes.append(f"files of other kinds are left alone: {describe_suffixes(listing.others)}")
    if listing.links:
        notes.append(
            f"symbolic links that lead to no file in the folder are left alone: "
            f"{len(listing.links):,}, e.g. {listing.links[0]}"
        )
    return notes


def describe_suffixes(counts: Counter[str]) -> str:
    """The commonest kinds of file with their counts."""
    kinds = [f"{count:,} {suffix}" for suffix, count in counts.most_common(8)]
    more = [f"{len(counts) - 8} kinds more"] if len(counts) > 8 else []
    return ", ".join(kinds + more)
