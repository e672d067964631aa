"""What lies beside a picture: NAME.txt, its caption, and NAME.json, its metadata."""

import codecs
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.sources.column_choice import (
    CAPTION_NAMES,
    DEFAULT_CAPTION_COLUMN,
    LIST_NAMES,
    TITLE_NAMES,
    only_known,
)
from data_prep.sources.columns import ColumnTypes
from data_prep.sources.rows import parse_object
from pretrain.base.progress import Bar

# No caption may be as long; a giant that is called .txt by mistake must not fill the memory.
TEXT_BYTES_CAP = 1 << 20
_KNOWN_CAPTIONS = (CAPTION_NAMES, LIST_NAMES, TITLE_NAMES)  # the first that a .json has, goes


@dataclass(kw_only=True)
class Sidecars:
    """Texts and metadata by the paths of their pictures, without suffix, below a folder."""

    root: Path
    texts: dict[str, str]
    metadata: dict[str, str]

    def read_text(self, picture: str) -> bytes | None:
        """The text beside a picture without its byte order mark; None where there is none."""
        path = self.texts.get(stem(picture))
        if path is None:
            return None
        with (self.root / path).open("rb") as file:
            text = file.read(TEXT_BYTES_CAP)
        if len(text) == TEXT_BYTES_CAP:  # far too long, and it is to be rejected as that
            text = text.decode("utf-8", "ignore").encode()
        return text.removeprefix(codecs.BOM_UTF8)

    def read_metadata(self, picture: str) -> dict[str, Any] | None:
        """The object in the .json beside a picture, empty where there is none; None if broken."""
        path = self.metadata.get(stem(picture))
        if path is None:
            return {}
        with (self.root / path).open("rb") as file:
            return parse_object(file.read(TEXT_BYTES_CAP).removeprefix(codecs.BOM_UTF8))


@dataclass(kw_only=True)
class _SidecarFindings:
    """What a look into all .json files found besides columns."""

    names: Counter[str] = field(default_factory=Counter)  # where captions stand -> files
    damaged: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)  # pictures that have no caption at all


def look_into(sidecars: Sidecars, pictures: Iterable[str]) -> tuple[pa.Schema, _SidecarFindings]:
    """The columns of all pictures, those of their .json files after the folder's own."""
    types, found = ColumnTypes(("path", "folder", "caption")), _SidecarFindings()
    looked_at = [path for path in pictures if stem(path) in sidecars.metadata]
    for picture in Bar(looked_at, unit="files", what="look into .json"):
        values = sidecars.read_metadata(picture)
        if values is None:
            found.damaged.append(sidecars.metadata[stem(picture)])
            continue
        name = caption_name(values)
        own = ("path", "folder", "caption")  # columns that are not the .json's alone
        types.see({key: value for key, value in values.items() if key not in own})
        if stem(picture) in sidecars.texts:
            continue
        if name is None:
            found.silent.append(picture)
        else:
            found.names[name] += 1
            types.see({"caption": values[name]})
    if sidecars.texts:
        types.see({"caption": ""})
    return pa.schema(types.fields()), found


def caption_name(values: dict[str, Any]) -> str | None:
    """Which of a .json's names holds the caption; None if none is clear."""
    chosen = (only_known(list(values), DEFAULT_CAPTION_COLUMN, known) for known in _KNOWN_CAPTIONS)
    return next(filter(None, chosen), None)


def sidecar_notes(found: _SidecarFindings) -> list[str]:
    """What a user may not expect of the .json files, a line each."""
    notes: list[str] = []
    for name, count in found.names.items():
        if name != DEFAULT_CAPTION_COLUMN:
            notes.append(f"captions are read from {name!r} of .json files: {count:,}")
    if found.silent:
        notes.append(
            f"pictures whose .json has no caption, or several that could be: "
            f"{len(found.silent):,}, e.g. {found.silent[0]}; their column caption is empty "
            "(--caption names other columns)"
        )
    if found.damaged:
        notes.append(
            f".json files that hold no JSON object: {len(found.damaged):,}, e.g. "
            f"{found.damaged[0]}; their pictures are rejected (metadata_unreadable)"
        )
    return notes


def stem(path: str) -> str:
    """A path without its suffix."""
    return path.rpartition(".")[0]
