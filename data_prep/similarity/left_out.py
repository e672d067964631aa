"""A page of what weights leave out: some samples beside the one that is kept for them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup import NOBODY
from data_prep.inspection.contact_sheet import shrink_to_data_url
from pretrain.base.files import write_durably
from pretrain.dataset.manifest import Manifest, tier_for
from pretrain.dataset.reader import Dataset
from pretrain.dataset.shards import ShardOptions
from pretrain.report.template import template

_PICTURE_PX = 112
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ShownDataset:
    """Where pictures and captions come from."""

    directory: Path
    manifest: Manifest
    caption: str | None
    """Name of the caption that is shown; None: each sample's first."""
    shards: ShardOptions | None = None
    """Where its shards are read."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample as the page shows it."""

    source: ShownDataset
    row: int
    is_kept: bool
    note: str


@dataclass(frozen=True, kw_only=True)
class ShownGroup:
    """Samples that are shown together."""

    title: str
    entries: Sequence[Entry]


class Fact(NamedTuple):
    """What the command did, at the page's head."""

    what: str
    """Empty: the value is a sentence."""
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Groups under a heading."""

    title: str
    note: str
    groups: Sequence[ShownGroup]


def check_page(page: Path | None) -> None:
    """ValueError, before any work is done, where a page cannot be written."""
    if page is None:
        return
    if page.is_dir():
        raise ValueError(f"--page={page} is a folder: name a file, e.g. {page / 'left_out.html'}")
    if not os.access(page.parent, os.W_OK):
        raise ValueError(f"--page={page}: {page.parent} is no folder to write in; name another")


def write_sections(
    path: Path, title: str, facts: Sequence[Fact], sections: Sequence[Section]
) -> None:
    """Write the page; a section without groups is left out. OSError or ValueError name the file."""
    entries = [e for section in sections for group in section.groups for e in group.entries]
    shown: dict[int, tuple[str | None, str]] = {}  # by the entry's identity
    for source in {id(e.source): e.source for e in entries}.values():
        mine = sorted((e for e in entries if e.source is source), key=lambda e: e.row)
        tier = tier_for(source.manifest, _PICTURE_PX)
        reader = Dataset(source.directory, tier, shards=source.shards, looks=False)
        rows = np.array([e.row for e in mine], np.int64)
        member = "txt" if source.caption is None else "json"
        for entry, (jpeg, words) in zip(mine, reader.members(rows, ("jpg", member)), strict=True):
            text = words.decode()
            if source.caption is not None:
                text = json.loads(text)["captions"].get(source.caption, "")
            shown[id(entry)] = shrink_to_data_url(jpeg), text
    page = template("left_out.html", _HERE, _HERE.parent / "inspection").render(
        title=title,
        facts=facts,
        sections=[section for section in sections if section.groups],
        shown=shown,
        identity=id,
    )
    write_durably(path, page)


def group_by_keeper(keeper: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that stand for others, the largest set first, and for how many each does."""
    keepers, counts = np.unique(keeper[keeper != NOBODY], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return keepers[order], counts[order]


def draw_rows(rows: NDArray[np.int64], wanted: int, seed: int) -> NDArray[np.int64]:
    """So many of the rows by the seed, ascending; all where there are fewer."""
    draws = np.random.default_rng(seed)
    return np.sort(draws.choice(rows, min(wanted, len(rows)), replace=False))


def spread_rows(rows: NDArray[np.int64], values: NDArray[np.float64], wanted: int) -> list[int]:
    """So many rows by rising value at equal steps, both ends among them."""
    ranked = rows[np.argsort(values, kind="stable")]
    places = np.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).round().astype(int)
    chosen: list[int] = ranked[places].tolist()
    return chosen
