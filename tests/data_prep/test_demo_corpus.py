"""The demo corpus is what its README says: whole, licensed, and split without leaks."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from near_duplicates import LOOSE_RMSE_THRESHOLD, RMSE_THRESHOLD, connected, features, near_pairs
from PIL import Image
from splits import draw_concepts, twin_groups

FOLDER = Path(__file__).parents[2] / "data_prep" / "demo_corpus"
CORPUS = FOLDER / "emoji.parquet"
COLUMNS = [
    *("image", "caption", "keywords", "group", "subgroup"),
    *("artist", "code_point", "licence", "split"),
]
LICENCES = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "fluent3d": "MIT",
    "fluent-flat": "MIT",
    "emojione": "CC-BY-4.0",
    "fxemoji": "CC-BY-4.0",
    "streamline": "CC-BY-4.0",
    "twemoji": "CC-BY-4.0",
}
Rows = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return pl.read_parquet(CORPUS)


@pytest.fixture(scope="module")
def rows(table: pl.DataFrame) -> Rows:
    images = (Image.open(io.BytesIO(data)) for data in table["image"])
    return features(np.stack([np.asarray(image.convert("RGB")) for image in images]))


def closest(left: Rows, right: Rows) -> float:
    """Return the smallest RMSE over all pairs, by brute force, within float32's rounding."""
    right_square = np.einsum("ij,ij->i", right, right)
    smallest = np.inf
    for start in range(0, len(left), 1024):
        part = left[start : start + 1024]
        square = np.einsum("ij,ij->i", part, part)[:, None] + right_square - 2 * part @ right.T
        for i, j in np.argwhere(square < (RMSE_THRESHOLD + 1) ** 2 * left.shape[1]):
            smallest = min(smallest, float(np.sqrt(np.mean((part[i] - right[j]) ** 2))))
    return smallest


def test_every_row_is_whole_and_every_picture_is_64_px(table: pl.DataFrame) -> None:
    assert table.columns == COLUMNS
    assert table.schema["image"] == pl.Binary
    assert {table.schema[name] for name in COLUMNS[1:]} == {pl.String}
    assert sum(table.null_count().row(0)) == 0
    assert {Image.open(io.BytesIO(data)).size for data in table["image"]} == {(64, 64)}
    for name in ("caption", "group", "subgroup"):
        assert table.filter(pl.col(name).str.strip_chars() == "").height == 0, name
    assert CORPUS.stat().st_size <= 8_000_000


def test_a_row_is_known_by_code_point_and_artist_and_a_caption_by_code_point(
    table: pl.DataFrame,
) -> None:
    keys = table.select("code_point", "artist")
    assert keys.is_unique().all()
    assert keys.equals(keys.sort("code_point", "artist")), "rows are not sorted"
    texts = table.select("code_point", "caption", "keywords", "group", "subgroup").unique()
    for name in ("code_point", "caption"):
        repeated = texts.filter(pl.col(name).is_duplicated())
        assert repeated.is_empty(), f"{name} is not distinct: {repeated.rows()[:4]}"
    echo = texts.filter(pl.col("keywords").str.split(", ").list.contains(pl.col("caption")))
    assert echo.is_empty(), f"keywords repeat the caption: {echo.rows()[:4]}"


def test_every_artist_has_its_allowed_licence_and_its_notice(table: pl.DataFrame) -> None:
    assert dict(table.select("artist", "licence").unique().iter_rows()) == LICENCES
    notice = (FOLDER / "NOTICE").read_text("utf-8")
    missing = [word for pair in LICENCES.items() for word in pair if word not in notice]
    assert not missing, f"NOTICE does not name {missing}"


def test_no_skin_tone_variant_is_in(table: pl.DataFrame) -> None:
    toned = table.filter(
        pl.col("code_point").str.contains("-1F3F[B-F]") & (pl.col("group") != "components")
    )
    assert toned.is_empty(), toned["caption"].to_list()[:5]


def test_held_out_concepts_and_the_held_out_artist_are_never_trained_on(
    table: pl.DataFrame,
) -> None:
    by_split = {split: part for (split,), part in table.partition_by("split", as_dict=True).items()}
    assert set(by_split) == {"train", "held_out_concepts", "held_out_artist"}
    assert set(by_split["held_out_artist"]["artist"]) == {"twemoji"}
    assert "twemoji" not in set(by_split["train"]["artist"])
    concepts = {split: set(part["code_point"]) for split, part in by_split.items()}
    assert not concepts["held_out_concepts"] & (concepts["train"] | concepts["held_out_artist"])
    share = len(concepts["held_out_concepts"]) / table["code_point"].n_unique()
    assert share == pytest.approx(0.10, abs=0.005)


def test_no_train_drawing_is_near_a_held_out_one(table: pl.DataFrame, rows: Rows) -> None:
    train = (table["split"] == "train").to_numpy()
    smallest = closest(rows[train][::6], rows[~train])  # a sixth: brute force takes its time
    assert smallest >= RMSE_THRESHOLD, f"closest straddling pair: RMSE {smallest:.2f}"
    pairs = list(near_pairs(rows[train], rows[~train]))
    assert not pairs, f"{len(pairs)} straddling pairs, closest {min(p[2] for p in pairs):.2f}"


def test_code_points_that_one_artist_draws_alike_are_held_out_together(
    table: pl.DataFrame, rows: Rows
) -> None:
    held_out = set(table.filter(pl.col("split") == "held_out_concepts")["code_point"])
    groups = twin_groups(
        artists=table["artist"].to_list(), code_points=table["code_point"].to_list(), rows=rows
    )
    assert any({"1F1FA-1F1F8", "1F1FA-1F1F2"} <= group for group in groups), "U.S. and its isles"
    torn = [group for group in groups if group & held_out and not group <= held_out]
    assert not torn, f"groups on both sides: {torn}"


def test_near_pairs_misses_nothing_that_brute_force_finds() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (40, 64, 64, 3))
    noisy = base[:20] + random.integers(-9, 10, (20, 64, 64, 3))
    shades = np.broadcast_to(np.arange(100, 140, 2)[:, None, None, None], (20, 64, 64, 3))
    pictures = np.concatenate([base, noisy, shades]).clip(0, 255).astype(np.uint8)
    rows = features(pictures)
    exact = {
        (i, j): float(np.sqrt(np.mean((rows[i].astype(np.float64) - rows[j]) ** 2)))
        for i, j in combinations(range(len(rows)), 2)
    }
    found = {(i, j): rmse for i, j, rmse in near_pairs(rows, rows) if i < j}
    must = {pair for pair, rmse in exact.items() if rmse < RMSE_THRESHOLD}
    may = {pair for pair, rmse in exact.items() if rmse < LOOSE_RMSE_THRESHOLD}
    assert must and must <= set(found) <= may
    worst = max(abs(rmse - exact[pair]) for pair, rmse in found.items())
    assert worst < 1e-4, f"largest difference {worst}"


def test_a_group_of_twins_is_drawn_whole() -> None:
    chained = connected([("a", "b"), ("c", "d"), ("b", "e"), ("f", "f")])
    assert sorted(map(sorted, chained)) == [["a", "b", "e"], ["c", "d"]]
    names = {f"{number:03}" for number in range(200)}
    groups = [{f"{number:03}" for number in range(first, first + 5)} for first in range(0, 200, 5)]
    drawn = draw_concepts(names, groups)
    assert len(drawn) == 20
    assert all(group <= drawn or not group & drawn for group in groups)
    assert drawn == draw_concepts(set(sorted(names, reverse=True)), groups[::-1])
