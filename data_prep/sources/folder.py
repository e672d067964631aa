"""A folder of pictures, each with its text in a file beside it: NAME.jpg and NAME.txt."""

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.sources.source import READ_ROWS, Batch

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
TEXT_SUFFIX = ".txt"
METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # huggingface.co/docs/datasets/image_dataset
# No caption may be as long; a giant that is called .txt by mistake must not fill the memory.
TEXT_BYTES_CAP = 1 << 20


@dataclass(kw_only=True)
class Listing:
    """The files below a folder, by paths relative to it. Hidden names are not looked at."""

    pictures: list[str] = field(default_factory=list)  # in bytewise order
    texts: dict[str, str] = field(default_factory=dict)  # path without suffix -> path
    others: Counter[str] = field(default_factory=Counter)  # suffix -> files
    metadata: list[str] = field(default_factory=list)  # tables of an imagefolder, among the others
    links: list[str] = field(default_factory=list)  # symbolic links that are not followed

    def without_text(self) -> list[str]:
        """Pictures beside which no text lies."""
        return [path for path in self.pictures if stem(path) not in self.texts]

    def describe(self) -> str:
        """What was found, on one line."""
        counts = Counter(Path(path).suffix.lower() for path in self.pictures) + self.others
        counts[TEXT_SUFFIX] += len(self.texts)
        counts["symbolic links out of it"] += len(self.links)
        return describe_suffixes(+counts) or "no files"


def list_folder(folder: Path) -> Listing:
    """Everything below a folder. A link is followed only to a file that lies below it, too."""
    listing = Listing()
    root = str(folder)
    inside = folder.resolve()
    for entry in walk_files(root):
        path = os.fspath(entry.path)[len(root) :].lstrip("/")
        suffix = Path(entry.name).suffix.lower()
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            if not (target.is_relative_to(inside) and target.is_file()):
                listing.links.append(path)
                continue
        if not entry.is_file():
            listing.others["special file"] += 1
        elif suffix in PICTURE_SUFFIXES:
            listing.pictures.append(path)
        elif suffix == TEXT_SUFFIX:
            # Of a.TXT and a.txt the latter, in whichever order the disk names them.
            listing.texts[stem(path)] = max(path, listing.texts.get(stem(path), ""))
        else:
            listing.others[suffix or "without suffix"] += 1
            if entry.name in METADATA_FILES:
                listing.metadata.append(path)
    listing.pictures.sort(key=os.fsencode)
    listing.links.sort(key=os.fsencode)
    return listing


def walk_files(root: str) -> Iterator[os.DirEntry[str]]:
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
    """Pictures and texts as files. Columns: path, folder (the last one's name) and caption."""

    schema = pa.schema([("path", pa.string()), ("folder", pa.string()), ("caption", pa.string())])
    image_column = None

    def __init__(self, root: Path, listing: Listing) -> None:
        self.root = root
        self.pictures = listing.pictures
        self.texts = listing.texts
        self.rows = len(self.pictures)
        self.notes = listing_notes(listing)

    def files(self) -> list[dict[str, Any]]:
        """The folder's name and how many files of each kind are in it."""
        counts = {"pictures": len(self.pictures), "texts": len(self.texts)}
        return [{"name": self.root.resolve().name, **counts}]

    def batches(
        self, columns: list[str], *, with_images: bool, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Pictures by their paths' bytes; each is read when it is asked for."""
        del with_images
        end = self.rows if stop is None else stop
        for first in range(start, end, READ_ROWS):
            paths = self.pictures[first : min(first + READ_ROWS, end)]
            yield self.make_batch(paths, columns or ["path"])

    def make_batch(self, paths: list[str], columns: list[str]) -> Batch:
        """The rows of some pictures. Texts are read now, if they are wanted."""
        table = pa.table({name: self.column(name, paths) for name in columns})
        return Batch(
            table=table,
            image=lambda row: (self.root / paths[row]).read_bytes(),
            place=lambda row: str(self.root / paths[row]),
        )

    def column(self, name: str, paths: list[str]) -> pa.Array:
        """One column of these pictures' rows."""
        if name == "caption":
            texts = [self.read_caption(path) for path in paths]
            return pa.array(texts, pa.binary()).view(pa.string())  # UTF-8 is judged later
        if name == "folder":
            paths = [Path(path).parent.name for path in paths]
        # A file's name may be any bytes, a column's text may not.
        return pa.array([os.fsencode(path).decode("utf-8", "replace") for path in paths])

    def read_caption(self, picture: str) -> bytes | None:
        """The text beside a picture without its byte order mark; None where there is none."""
        path = self.texts.get(stem(picture))
        if path is None:
            return None
        with (self.root / path).open("rb") as file:
            text = file.read(TEXT_BYTES_CAP)
        if len(text) == TEXT_BYTES_CAP:  # far too long, and it is to be rejected as that
            text = text.decode("utf-8", "ignore").encode()
        return text.removeprefix(codecs.BOM_UTF8)


def listing_notes(listing: Listing) -> list[str]:
    """What a user may not expect of the folder, a line each."""
    notes: list[str] = []
    bare = listing.without_text()
    if bare:
        notes.append(
            f"pictures without a {TEXT_SUFFIX} beside them: {len(bare):,} of "
            f"{len(listing.pictures):,}, e.g. {bare[0]}; their column caption is empty"
        )
    if len(bare) == len(listing.pictures):
        notes[-1] += ' (--caption "caption=a photo of {folder}" needs no texts)'
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


def stem(path: str) -> str:
    """A path without its suffix."""
    return path.rpartition(".")[0]


def describe_suffixes(counts: Counter[str]) -> str:
    """The commonest kinds of file with their counts."""
    kinds = [f"{count:,} {suffix}" for suffix, count in counts.most_common(8)]
    more = [f"{len(counts) - 8} kinds more"] if len(counts) > 8 else []
    return ", ".join(kinds + more)
