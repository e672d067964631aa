"""What dedup leaves out, to look at: groups of near duplicates, and evaluation pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.hashes import FLAT
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
    """The dataset, its hashes, and the evaluation sets with theirs."""

    directory: Path
    manifest: Manifest
    caption: str
    shards: ShardOptions
    hashes: NDArray[np.uint64]
    others: list[tuple[tuple[Path, Manifest], NDArray[np.uint64]]]


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
        apart = np.bitwise_count(sets.hashes[others] ^ sets.hashes[row]).astype(np.float64)
        entries = [_first(mine, row, kept)]
        for one in spread_rows(others, apart, _LARGEST_SHOWN):
            bits = np.bitwise_count(sets.hashes[row] ^ sets.hashes[one])
            entries.append(Entry(source=mine, row=one, is_kept=False, note=f"distance {bits}"))
        title = f"{len(others) + 1:,} pictures" if len(others) > 2 else ""
        return ShownGroup(title=title, entries=entries)

    # The largest groups may be pairs; no group is shown twice.
    further = keepers[_LARGEST_GROUPS:][counts[_LARGEST_GROUPS:] < 3]
    small = draw_rows(further, _SMALL_GROUPS, seed)
    sections = [
        Section(
            title="The largest groups",
            note="The distance is the number of bits, of 64, in which a picture's hash differs "
            "from the first one's; the pictures shown go from the nearest to the farthest. One "
            "above --distance is joined through others. A first one that is left out too is near "
            "an evaluation picture, or its caption comes too often.",
            groups=[group(row) for row in keepers[:_LARGEST_GROUPS].tolist()],
        ),
        Section(
            title="Further groups of two or three",
            note=f"Drawn by the seed {seed}, not picked.",
            groups=[group(row) for row in small.tolist()],
        ),
    ]
    for ((directory, manifest), hashes), flags in zip(sets.others, found.contaminated, strict=True):
        other = ShownDataset(directory=directory, manifest=manifest, caption=manifest.captions[0])
        rows = draw_rows(np.flatnonzero(flags), max(1, _PAIRS // len(sets.others)), seed)
        sections.append(
            Section(
                title=f"Evaluation pictures of {directory.name}",
                note=f"A training picture and the nearest evaluation picture; drawn by the seed "
                f"{seed}.",
                groups=[_pair(mine, other, sets.hashes[row], hashes, row) for row in rows.tolist()],
            )
        )
    write_sections(path, f"Left out by dedup: {sets.directory.resolve().name}", facts, sections)


def _first(source: ShownDataset, row: int, kept: NDArray[np.bool_]) -> Entry:
    """The first of a group, which another reason may leave out too."""
    note = "kept" if kept[row] else "first, left out too"
    return Entry(source=source, row=row, is_kept=bool(kept[row]), note=note)


def _pair(
    mine: ShownDataset, other: ShownDataset, mark: np.uint64, hashes: NDArray[np.uint64], row: int
) -> ShownGroup:
    """A training picture beside the evaluation picture whose hash is nearest."""
    apart = np.where(hashes != FLAT, np.bitwise_count(hashes ^ mark), 64)
    near = int(apart.argmin())
    return ShownGroup(
        title="",
        entries=[
            Entry(source=mine, row=row, is_kept=False, note=f"train, distance {apart[near]}"),
            Entry(source=other, row=near, is_kept=True, note="evaluation"),
        ],
    )
