"""Which drawing goes into which split: whole concepts and a whole artist held out, no twins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from near_duplicates import connected, near_pairs

TRAIN = "train"
HELD_OUT_CONCEPTS = "held_out_concepts"
HELD_OUT_ARTIST = "held_out_artist"
TEST_ARTIST = "twemoji"
HELD_OUT_SHARE = 0.10
SEED = 20261123


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The outcome of a split: one entry per drawing, None where the drawing is dropped."""

    splits: list[str | None]
    twin_groups: list[set[str]]
    """Code points that must go together because one artist draws them alike."""
    twin_concepts_held_out: int
    dropped: list[tuple[int, int, float]]
    """(train drawing dropped, held-out drawing it resembles, RMSE) for each such pair."""


def assign(
    *, artists: Sequence[str], code_points: Sequence[str], rows: npt.NDArray[np.float32]
) -> Assignment:
    """Split drawings so that no train drawing is near-identical to a held-out one.

    `rows` are the drawings' features. Code points that any one artist draws alike are held out
    together or not at all. What is left after that, one artist's train drawing that resembles a
    held-out drawing by another, is dropped from train.
    """
    groups = twin_groups(artists=artists, code_points=code_points, rows=rows)
    held_out = draw_concepts(set(code_points), groups)
    splits: list[str | None] = [
        HELD_OUT_CONCEPTS
        if code_point in held_out
        else HELD_OUT_ARTIST
        if artist == TEST_ARTIST
        else TRAIN
        for artist, code_point in zip(artists, code_points, strict=True)
    ]
    dropped = straddling_pairs(splits, rows)
    for train_row, _, _ in dropped:
        splits[train_row] = None
    left = straddling_pairs(splits, rows)
    if left:
        raise RuntimeError(
            f"a split without straddling pairs was asked for, {len(left)} remain, the first "
            f"{left[:3]}: near_pairs must find the same pairs whatever rows it is given"
        )
    return Assignment(
        splits=splits,
        twin_groups=groups,
        twin_concepts_held_out=sum(len(group) for group in groups if group <= held_out),
        dropped=dropped,
    )


def twin_groups(
    *, artists: Sequence[str], code_points: Sequence[str], rows: npt.NDArray[np.float32]
) -> list[set[str]]:
    """Return the groups of code points that some artist draws near-identically."""
    pairs: list[tuple[str, str]] = []
    for artist in sorted(set(artists)):
        own = [i for i, name in enumerate(artists) if name == artist]
        pairs += (
            (code_points[own[i]], code_points[own[j]])
            for i, j, _ in near_pairs(rows[own], rows[own])
            if i < j
        )
    return connected(pairs)


def draw_concepts(code_points: set[str], groups: Iterable[set[str]]) -> set[str]:
    """Draw a tenth of the code points, groups whole, by a seeded hash (no generator's state)."""
    grouped = {code_point for group in groups for code_point in group}
    units = [sorted(group) for group in groups] + [[one] for one in code_points - grouped]

    def draw(unit: list[str]) -> str:
        return hashlib.sha256(f"{SEED}:{unit[0]}".encode()).hexdigest()

    wanted = round(HELD_OUT_SHARE * len(code_points))
    drawn: set[str] = set()
    for unit in sorted(units, key=draw):
        if len(drawn) + len(unit) <= wanted:
            drawn.update(unit)
    return drawn


def straddling_pairs(
    splits: Sequence[str | None], rows: npt.NDArray[np.float32]
) -> list[tuple[int, int, float]]:
    """Return (train drawing, held-out drawing, RMSE) for every near-identical pair of the two."""
    train = [i for i, split in enumerate(splits) if split == TRAIN]
    held_out = [i for i, split in enumerate(splits) if split not in (TRAIN, None)]
    return [(train[i], held_out[j], rmse) for i, j, rmse in near_pairs(rows[train], rows[held_out])]
