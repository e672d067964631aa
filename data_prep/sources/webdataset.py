"""WebDataset tars, those of img2dataset too: members of one name are one record.

Read by our own strict walk over the archive, not by the `webdataset` package: that imports torch,
and by default runs pickles that lie in the tar. Key and extension are split as it does
(`base_plus_ext` in webdataset/tariterators.py).
"""

import re
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from data_prep.rejection import RejectedError
from data_prep.sources.columns import ColumnTypes
from data_prep.sources.files import Files
from data_prep.sources.folder import describe_suffixes
from data_prep.sources.links import LinkCounts
from data_prep.sources.look import Look, describe_columns
from data_prep.sources.picture_files import read_range
from data_prep.sources.rows import MARKED_ROWS, Marks, Row, RowSource, parse_object
from data_prep.sources.sidecars import TEXT_BYTES_CAP
from data_prep.sources.source import FilePlace
from pretrain.base.progress import Bar
from pretrain.dataset.pictures import SUFFIXES
from pretrain.dataset.tars import Member, is_hidden, read_tar

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
# What webdataset itself decodes as text or as a number's text, and the field's other names.
_TEXT_EXTENSIONS = frozenset(
    ("txt", "text", "caption", "transcript", "cls", "class", "index", "id", "url", "label")
)
_CAPTION_EXTENSION = "txt"


@dataclass(kw_only=True)
class _MemberGroup:
    """The members of one key, by extension in lower case; texts with their content."""

    key: str
    begin: int  # in the archive
    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass(kw_only=True)
class _TarFindings:
    """What a look through all archives found besides columns."""

    groups: int = 0
    pictures: Counter[str] = field(default_factory=Counter)  # extension -> members
    without_picture: list[str] = field(default_factory=list)  # the first; counted below
    bare: int = 0
    damaged: int = 0
    damaged_example: str = ""
    others: Counter[str] = field(default_factory=Counter)  # suffix -> members left alone


class _OpenTar:
    """An archive that is opened once for all that is read of it: one from a hub may be gone from
    this machine's disk meanwhile. Closed with the last record that may ask for its picture.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self.file: BinaryIO = files.read(path, lambda local: local.open("rb"))
        weakref.finalize(self, self.file.close)


class WebDatasetSource(RowSource):
    """Tars in the order of their paths, records in the order of the archive.

    Columns: key, caption (the .txt, or else `caption` of the .json), the .json's top level, and
    every other text member by its extension.
    """

    def __init__(
        self,
        source: str,
        files: Files,
        image_column: str | None,
        downloads: LinkCounts | None = None,
        look: Look | None = None,
    ) -> None:
        """look: what an earlier look through these archives found."""
        self.parts = files
        self.image_column = image_column
        self.notes = []
        self.downloads = downloads
        self.marks = Marks()
        if look is None:
            self.look_through(source)
        else:
            self.rows, self.schema, self.notes = look.rows, look.schema, list(look.notes)
            for row, file, place in look.marks:
                self.marks.add(row, file, place)

    def state(self) -> str:
        """Another after a file changed."""
        return self.parts.state()

    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the archives."""
        return [{"name": path.name, "bytes": self.parts.size(path)} for path in self.parts.paths]

    def look_through(self, source: str) -> None:
        """Find the columns, count the records, and see that every archive is whole."""
        types = ColumnTypes(("key", "caption"))
        found = _TarFindings()
        paths = Bar(self.parts.paths, unit="tars", what="look through")
        for number, path in enumerate(paths):
            seen: set[str] = set()
            for group in _read_groups(_OpenTar(self.parts, path), found.others):
                if len(seen) % MARKED_ROWS == 0:
                    self.marks.add(found.groups, number, group.begin)
                if group.key in seen:
                    raise ValueError(
                        f"source: {path} holds the members of {group.key!r} apart from one "
                        "another, or twice; make it again with names in order "
                        "(tar --sort=name -cf …)"
                    )
                seen.add(group.key)
                self.look_at(path, group, types, found)
        if not found.pictures:
            raise ValueError(
                f"source={source} holds no pictures ({found.groups:,} records in "
                f"{len(self.parts.paths):,} tars; "
                f"{describe_suffixes(found.others) or 'no others'}); pictures are members "
                "named KEY.jpg, KEY.png and the like"
            )
        if self.image_column is not None and self.image_column not in found.pictures:
            raise ValueError(
                f"image_column={self.image_column!r}: pictures in {source} have the extensions "
                f"{sorted(found.pictures)}; choose one of them with --image-column"
            )
        self.rows = found.groups
        if not types.kinds["caption"]:
            del types.kinds["caption"]  # others may have the captions
        self.schema = pa.schema(types.fields())
        self.notes = _notes_of(found)

    def look(self, of: dict[str, Any]) -> Look:
        """What the look through the archives found, to be kept."""
        marks = zip(self.marks.rows, self.marks.places, strict=True)
        return Look(
            of=of,
            rows=self.rows,
            columns=describe_columns(self.schema),
            notes=list(self.notes),
            marks=[(row, file, place) for row, (file, place) in marks],
        )

    def look_at(
        self, path: Path, group: _MemberGroup, types: ColumnTypes, found: _TarFindings
    ) -> None:
        """Note what one record holds. ValueError if it has several pictures and none is named."""
        found.groups += 1
        pictures = [name for name in group.members if _is_picture(name)]
        found.pictures.update(pictures)
        if len(pictures) > 1 and self.image_column is None:
            raise ValueError(
                f"source: {path} has several pictures for {group.key!r}: {sorted(pictures)}; "
                "choose one with --image-column (a key ends at the first dot of a name)"
            )
        if not pictures:
            found.bare += 1
            found.without_picture = found.without_picture or [f"{path} {group.key}"]
        columns, damaged = _columns_of(group)
        types.see(columns)
        if damaged:
            found.damaged += 1
            found.damaged_example = found.damaged_example or f"{path} {group.key}"

    def tars(self) -> list[tuple[int, Path]]:
        """(number of its first row, path) of each archive that holds rows, in order."""
        firsts: dict[int, int] = {}
        for row, (number, _) in zip(self.marks.rows, self.marks.places, strict=True):
            firsts.setdefault(number, row)
        return [(row, self.parts.paths[number]) for number, row in firsts.items()]

    def read_rows(self, file: int, place: int) -> Iterator[Row]:
        """All records from the byte `place` of an archive on."""
        for path in self.parts.paths[file:]:
            tar = _OpenTar(self.parts, path)
            for group in _read_groups(tar, Counter(), place):
                yield self.make_row(tar, group)
            place = 0

    def make_row(self, tar: _OpenTar, group: _MemberGroup) -> Row:
        """One record; its picture stays in the archive until it is asked for."""
        names = [name for name in group.members if _is_picture(name)]
        name = self.image_column or (names[0] if names else None)
        member = group.members.get(name) if name is not None else None

        def image() -> bytes:
            if member is None:
                raise RejectedError("image_missing")
            place, size = member.offset, member.size
            return read_range(tar.path, tar.file, place, size)

        stored = None
        if member is not None:
            stored = FilePlace(file=tar.path, offset=member.offset, size=member.size)
        return Row(
            columns=_columns_of(group)[0],
            image=image,
            place=f"{tar.path} {group.key}",
            stored=stored,
        )


def _read_groups(tar: _OpenTar, others: Counter[str], begin: int = 0) -> Iterator[_MemberGroup]:
    """Neighbouring members of one key, small texts read. What is no part of a record is counted.

    ValueError if a key has two members of one extension.
    """
    group: _MemberGroup | None = None
    path, file = tar.path, tar.file
    for member in read_tar(path, file, begin):
        if is_hidden(member.name):
            others["hidden"] += 1
            continue
        split = _KEY_AND_EXTENSION.fullmatch(member.name)
        if not member.regular or split is None:
            if not member.name.endswith("/"):
                others["unnamed or special"] += 1
            continue
        key, extension = split.group(1), split.group(2).lower()
        if group is None or key != group.key:
            if group is not None:
                yield group
            group = _MemberGroup(key=key, begin=member.begin)
        if extension in group.members:
            raise ValueError(
                f"source: {path} holds {key}.{extension} twice; make it again with one of them"
            )
        group.members[extension] = member
        if _is_text(extension) or _is_json(extension):
            file.seek(member.offset)
            group.texts[extension] = file.read(min(member.size, TEXT_BYTES_CAP))
        elif not _is_picture(extension):
            others["." + extension] += 1
    if group is not None:
        yield group


def _columns_of(group: _MemberGroup) -> tuple[dict[str, Any], bool]:
    """The record's columns, and whether a .json in it could not be read."""
    columns: dict[str, Any] = {"key": group.key}
    damaged = False
    for extension, text in group.texts.items():
        if extension == _CAPTION_EXTENSION:
            columns["caption"] = text
        elif _is_text(extension):
            columns[extension.replace(".", "_")] = text
    for extension, text in group.texts.items():
        if _is_json(extension):
            values = parse_object(text)
            damaged = damaged or values is None
            columns = {**(values or {}), **columns}
    return columns, damaged


def _is_picture(extension: str) -> bool:
    """Whether members of this extension are pictures."""
    return "." + extension.rpartition(".")[2] in SUFFIXES


def _is_json(extension: str) -> bool:
    """Whether members of this extension hold columns."""
    return extension.rpartition(".")[2] == "json"


def _is_text(extension: str) -> bool:
    """Whether members of this extension are a column each."""
    return extension.rpartition(".")[2] in _TEXT_EXTENSIONS


def _notes_of(found: _TarFindings) -> list[str]:
    """What a user may not expect of the archives, a line each."""
    notes: list[str] = []
    if found.bare:
        notes.append(
            f"records without a picture: {found.bare:,} of {found.groups:,}, e.g. "
            f"{found.without_picture[0]}; they are rejected (image_missing)"
        )
    if found.damaged:
        notes.append(
            f".json members that hold no JSON object: {found.damaged:,}, e.g. "
            f"{found.damaged_example}; their columns are empty"
        )
    if found.others:
        notes.append(f"members of other kinds are left alone: {describe_suffixes(found.others)}")
    return notes
