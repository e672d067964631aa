"""What a filter by embeddings leaves out, to look at: near duplicates, and scores at both ends."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup import NOBODY
from data_prep.dedup.semantic import Repeats
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

_LEAST_ALIKE = 8
_RANDOM = 6
_LARGEST_SETS = 3
_LARGEST_SHOWN = 8  # of such a set, beside the kept one
_SCORED = 24  # at each end


def write_page(
    path: Path,
    source: ShownDataset,
    scores: NDArray[np.float64],
    weights: NDArray[np.float32],
    found: Repeats | None,
    told: list[str],
    seed: int,
) -> None:
    """Write the page; `scores` and `weights`: (N,)."""
    sections = [] if found is None else _duplicates(source, found, seed)
    ascending = np.argsort(scores, kind="stable")
    ascending = ascending[: np.count_nonzero(~np.isnan(scores))]
    for title, rows in (
        ("The lowest cosines of picture and text", ascending[:_SCORED]),
        ("The highest cosines of picture and text", ascending[::-1][:_SCORED]),
    ):
        entries = [
            Entry(
                source=source,
                row=row,
                is_kept=bool(weights[row] > 0),
                note=f"{scores[row]:.4f}, {'kept' if weights[row] > 0 else 'left out'}",
            )
            for row in rows.tolist()
        ]
        groups = [ShownGroup(title="", entries=entries)] if entries else []
        sections.append(Section(title=title, note="From the end inwards.", groups=groups))
    name = source.directory.resolve().name
    facts = [Fact("", line) for line in told]
    write_sections(path, f"Left out by filter: {name}", facts, sections)


def _duplicates(source: ShownDataset, found: Repeats, seed: int) -> list[Section]:
    """Pairs at the threshold, pairs by the seed, and the largest sets."""
    repeats = np.flatnonzero(found.keeper != NOBODY)
    least = repeats[np.argsort(found.cosine[repeats], kind="stable")[:_LEAST_ALIKE]]
    keepers, counts = group_by_keeper(found.keeper)

    def together(row: int, others: list[int], title: str) -> ShownGroup:
        entries = [Entry(source=source, row=row, is_kept=True, note="kept")]
        entries += [
            Entry(source=source, row=one, is_kept=False, note=f"cosine {found.cosine[one]:.4f}")
            for one in others
        ]
        return ShownGroup(title=title, entries=entries)

    def pairs(rows: NDArray[np.int64]) -> list[ShownGroup]:
        return [together(int(found.keeper[row]), [row], "") for row in rows.tolist()]

    largest: list[ShownGroup] = []
    for row, count in zip(
        keepers[:_LARGEST_SETS].tolist(), counts[:_LARGEST_SETS].tolist(), strict=True
    ):
        others = np.flatnonzero(found.keeper == row)
        shown = spread_rows(others, found.cosine[others].astype(np.float64), _LARGEST_SHOWN)
        largest.append(together(row, shown, f"{count + 1:,} pictures"))
    return [
        Section(
            title="The least alike near duplicates",
            note="Those nearest to --duplicate-cosine.",
            groups=pairs(least),
        ),
        Section(
            title="Near duplicates",
            note=f"Drawn by the seed {seed}, not picked.",
            groups=pairs(draw_rows(repeats, _RANDOM, seed)),
        ),
        Section(
            title="The largest sets",
            note="Cosines are to the kept one, at equal steps from the least alike.",
            groups=largest,
        ),
    ]
