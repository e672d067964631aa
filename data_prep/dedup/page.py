"""What dedup leaves out, to look at: groups of near duplicates, and evaluation pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup import NOBODY
from data_prep.dedup.compare import differences
from data_prep.dedup.hashes import VIEWS, Views
from data_prep.dedup.neighbours import Found
from data_prep.similarity.left_out import (
    Entry,
    Fact,
    Section,
    ShownDataset,
    ShownGroup,
    draw_rows,
    group_by_keeper,
    spread_rows,
    write_sections,
)
from pretrain.dataset.manifest import Manifest
from pretrain.dataset.shards import ShardOptions

_LARGEST_GROUPS = 4
_LARGEST_SHOWN = 8  # of such a group, beside the kept one
_SMALL_GROUPS = 10
_PAIRS = 24  # of a training and an evaluation picture, over all sets


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The dataset and the evaluation sets, and the views of each."""

    directory: Path
    manifest: Manifest
    caption: str
    shards: ShardOptions
    views: list[Views]
    others: list[tuple[Path, Manifest]]


def write_page(
    path: Path, sets: Sets, found: Found, kept: NDArray[np.bool_], facts: list[Fact], seed: int
) -> None:
    """Write the page; `kept`: (N,) the samples that the weights show."""
    mine = ShownDataset(
        directory=sets.directory, manifest=sets.manifest, caption=sets.caption, shards=sets.shards
    )
    keepers, counts = group_by_keeper(found.keeper)

    def group(row: int) -> ShownGroup:
        others = np.flatnonzero(found.keeper == row)
        apart = _differences(sets.views[0], row, sets.views[0][others])
        entries = [_first(mine, row, kept)]
        for one in spread_rows(others, apart, _LARGEST_SHOWN):
            levels = apart[others == one][0]
            note = f"difference {levels:.0f}"
            entries.append(Entry(source=mine, row=one, is_kept=False, note=note))
        title = f"{len(others) + 1:,} pictures" if len(others) > 2 else ""
        return ShownGroup(title=title, entries=entries)

    # The largest groups may be pairs; no group is shown twice.
    further = keepers[_LARGEST_GROUPS:][counts[_LARGEST_GROUPS:] < 3]
    small = draw_rows(further, _SMALL_GROUPS, seed)
    sections = [
        Section(
            title="The largest groups",
            note="The difference is the largest at any place, in levels of 255, from the first one "
            "once it is laid over; the pictures shown go from the nearest to the farthest. One "
            "above --difference is joined through others. A first one that is left out too is near "
            "an evaluation picture, or its caption comes too often.",
            groups=[group(row) for row in keepers[:_LARGEST_GROUPS].tolist()],
        ),
        Section(
            title="Further groups of two or three",
            note=f"Drawn by the seed {seed}, not picked.",
            groups=[group(row) for row in small.tolist()],
        ),
    ]
    for number, ((directory, manifest), near) in enumerate(
        zip(sets.others, found.nearest, strict=True)
    ):
        other = ShownDataset(directory=directory, manifest=manifest, caption=manifest.captions[0])
        rows = draw_rows(np.flatnonzero(near != NOBODY), max(1, _PAIRS // len(sets.others)), seed)
        sections.append(
            Section(
                title=f"Evaluation pictures of {directory.name}",
                note=f"A training picture and the nearest evaluation picture; drawn by the seed "
                f"{seed}.",
                groups=[
                    _pair(mine, other, sets.views[0], sets.views[number + 1], row, int(near[row]))
                    for row in rows.tolist()
                ],
            )
        )
    write_sections(path, f"Left out by dedup: {sets.directory.resolve().name}", facts, sections)


def _first(source: ShownDataset, row: int, kept: NDArray[np.bool_]) -> Entry:
    """The first of a group, which another reason may leave out too."""
    note = "kept" if kept[row] else "first, left out too"
    return Entry(source=source, row=row, is_kept=bool(kept[row]), note=note)


def _pair(
    mine: ShownDataset, other: ShownDataset, views: Views, its: Views, row: int, near: int
) -> ShownGroup:
    """A training picture beside the nearest evaluation picture."""
    levels = _differences(views, row, its[near : near + 1])[0]
    return ShownGroup(
        title="",
        entries=[
            Entry(source=mine, row=row, is_kept=False, note=f"train, difference {levels:.0f}"),
            Entry(source=other, row=near, is_kept=True, note="evaluation"),
        ],
    )


def _differences(views: Views, row: int, others: Views) -> NDArray[np.float64]:
    """(B,) of a row from (B, VIEWS, VIEW_BYTES) others, by the views that are most alike."""
    found = [
        differences(np.broadcast_to(views[row, one], others[:, other].shape), others[:, other])
        for one in range(VIEWS)
        for other in range(VIEWS)
        if 0 in (one, other)
    ]
    return np.min(found, axis=0).astype(np.float64)
