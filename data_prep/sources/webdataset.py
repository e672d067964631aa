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

import numpy as np
import pyarrow as pa

from data_prep.rejection import RejectedError
from data_prep.sources.columns import ColumnTypes
from data_prep.sources.files import Files, describe_files
from data_prep.sources.folder import describe_suffixes
from data_prep.sources.links import LinkCounts
from data_prep.sources.look import Look, Looking, describe_columns, look_through
from data_prep.sources.picture_files import read_range
from data_prep.sources.rows import MARKED_ROWS, Marks, Row, RowSource, parse_object
from data_prep.sources.sidecars import TEXT_BYTES_CAP
from data_prep.sources.source import FilePlace
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
    """What a look through archives found: through one, or all."""

    groups: int = 0
    pictures: Counter[str] = field(default_factory=Counter)  # extension -> members
    bare: int = 0  # records without a picture
    bare_example: str = ""
    damaged: int = 0
    damaged_example: str = ""
    others: Counter[str] = field(default_factory=Counter)  # suffix -> members left alone

    def add(self, more: "_TarFindings") -> None:
        """What was found in the next archives."""
        self.groups += more.groups
        self.pictures.update(more.pictures)
        self.bare += more.bare
        self.bare_example = self.bare_example or more.bare_example
        self.damaged += more.damaged
        self.damaged_example = self.damaged_example or more.damaged_example
        self.others.update(more.others)


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
        looking: Looking | None = None,
    ) -> None:
        """look: what an earlier look through these archives found; looking: who looks now."""
        self.parts = files
        self.image_column = image_column
        self.notes = []
        self.downloads = downloads
        if look is None:
            self.look_through(source, looking or Looking())
        else:
            self.rows, self.schema, self.notes = look.rows, look.schema, list(look.notes)
            self.marks = Marks(look.marks)

    def state(self) -> str:
        """Another after a file changed."""
        return self.parts.state()

    def files(self) -> list[dict[str, Any]]:
        """Names and sizes of the archives."""
        return describe_files(self.parts)

    def look_through(self, source: str, looking: Looking) -> None:
        """Find the columns, count the records, and see that every archive is whole."""
        types = ColumnTypes(("key", "caption"))
        found, marks = _TarFindings(), []
        sizes = [self.parts.size(path) for path in self.parts.paths]
        asked = {"state": self.parts.state(), "image_column": self.image_column}
        state = self.parts, self.image_column
        for record in look_through(_look_at_tar, state, sizes, asked, looking, "tars"):
            types.add(record.pop("types"))
            marks.append((record["groups"], record.pop("marks")))
            record["pictures"], record["others"] = map(
                Counter, (record["pictures"], record["others"])
            )
            found.add(_TarFindings(**record))
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
        self.marks = Marks.join(marks)

    def look(self, of: dict[str, Any]) -> Look:
        """What the look through the archives found, to be kept."""
        return Look(
            of=of,
            rows=self.rows,
            columns=describe_columns(self.schema),
            notes=list(self.notes),
            marks=self.marks.array,
        )

    def tars(self) -> list[tuple[int, Path]]:
        """(number of its first row, path) of each archive that holds rows, in order."""
        numbers, at = np.unique(self.marks.array[:, 1], return_index=True)
        firsts = self.marks.array[at, 0]
        return [
            (row, self.parts.paths[number])
            for row, number in zip(firsts.tolist(), numbers.tolist(), strict=True)
        ]

    def read_rows(self, file: int, place: tuple[int, int]) -> Iterator[Row]:
        """All records from the byte `place[0]` of an archive on."""
        begin = place[0]
        for path in self.parts.paths[file:]:
            tar = _OpenTar(self.parts, path)
            for group in _read_groups(tar, Counter(), begin):
                yield self.make_row(tar, group)
            begin = 0

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


def _look_at_tar(state: tuple[Files, str | None], number: int) -> dict[str, Any]:
    """_TarFindings of one archive, its columns' kinds of value, and marks of its records.

    ValueError for records that cannot be read as they are.
    """
    parts, image_column = state
    path = parts.paths[number]
    found, types = _TarFindings(), ColumnTypes(("key", "caption"))
    marks: list[tuple[int, int, int]] = []
    seen: set[str] = set()
    for group in _read_groups(_OpenTar(parts, path), found.others):
        if found.groups % MARKED_ROWS == 0:
            marks.append((found.groups, group.begin, 0))
        if group.key in seen:
            raise ValueError(
                f"source: {path} holds the members of {group.key!r} in several places, or "
                "twice; make it again with names in order (tar --sort=name -cf …)"
            )
        seen.add(group.key)
        pictures = [name for name in group.members if _is_picture(name)]
        found.groups += 1
        found.pictures.update(pictures)
        if len(pictures) > 1 and image_column is None:
            raise ValueError(
                f"source: {path} has several pictures for {group.key!r}: {sorted(pictures)}; "
                "choose one with --image-column (a key ends at the first dot of a name)"
            )
        if not pictures:
            found.bare += 1
            found.bare_example = found.bare_example or f"{path} {group.key}"
        columns, damaged = _columns_of(group)
        types.see(columns)
        if damaged:
            found.damaged += 1
            found.damaged_example = found.damaged_example or f"{path} {group.key}"
    return {**vars(found), "types": types.plain(), "marks": marks}


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
            f"{found.bare_example}; they are rejected (image_missing)"
        )
    if found.damaged:
        notes.append(
            f".json members that hold no JSON object: {found.damaged:,}, e.g. "
            f"{found.damaged_example}; their columns are empty"
        )
    if found.others:
        notes.append(f"members of other kinds are left alone: {describe_suffixes(found.others)}")
    return notes
