"""Token reduction keeps exactly what it says: sorted, unique, counted, seeded, in order."""

import numpy as np
import pytest

from pretrain.seeding import Purpose, uniforms
from pretrain.shard_format import WordClass
from pretrain.tokens.context import add_specials
from pretrain.tokens.image_reduction import block_shape, draws_needed, keep_index, kept_count
from pretrain.tokens.text_reduction import reduce_tokens
from pretrain.tokens.vocabulary import Vocabulary

POSITIONS = np.arange(4000, dtype=np.int64)


def masks(reduction, grid, keep, seed=0, positions=POSITIONS):
    draws = uniforms(seed, positions, Purpose.IMAGE_TOKENS, draws_needed(reduction, grid))
    return keep_index(reduction, grid, keep, draws)


@pytest.mark.parametrize(
    ("reduction", "grid", "keep", "count"),
    [("random", 7, 12, 12), ("grid", 14, None, 49), ("grid", 7, None, 16), ("block", 14, 48, 48)],
)
def test_image_masks_are_sorted_unique_counted_and_cover_the_picture(reduction, grid, keep, count):
    index = masks(reduction, grid, keep)
    assert (
        index.shape
        == (len(POSITIONS), count)
        == (len(POSITIONS), kept_count(reduction, grid, keep))
    )
    assert (np.diff(index, axis=1) > 0).all()
    assert index.min() == 0 and index.max() == grid * grid - 1
    share = np.bincount(index.reshape(-1), minlength=grid * grid) / len(POSITIONS)
    if reduction == "random":
        assert abs(share - count / grid**2).max() < 0.04  # each patch alike: 5 sigma of 4,000 draws
    assert (share > 0).all()


def test_grid_keeps_one_patch_of_every_cell():
    index = masks("grid", 6, None)
    cells = (index // 6 // 2) * 3 + index % 6 // 2
    assert (np.sort(cells, axis=1) == np.arange(9)).all()


def test_block_is_one_rectangle():
    height, width = block_shape(14, 48)
    assert height * width == 48
    index = masks("block", 14, 48)
    rows, columns = index // 14, index % 14
    assert (np.ptp(rows, axis=1) == height - 1).all()
    assert (np.ptp(columns, axis=1) == width - 1).all()


def test_a_draw_depends_on_seed_and_position_alone():
    whole = masks("random", 7, 12)
    picked = POSITIONS[[3999, 17, 256]]
    assert (masks("random", 7, 12, positions=picked) == whole[picked]).all()
    assert (masks("random", 7, 12, seed=1) != whole).any(axis=1).mean() > 0.99


@pytest.mark.parametrize(
    ("reduction", "keep", "remedy"),
    [
        ("random", None, "image_keep_tokens"),
        ("random", 50, "between 1 and 49"),
        ("block", 47, "product"),
        ("grid", 10, "2x2"),
        ("none", 5, "image_reduction"),
    ],
)
def test_impossible_image_reductions_name_the_remedy(reduction, keep, remedy):
    with pytest.raises(ValueError, match=remedy):
        kept_count(reduction, 7, keep)


N, A, V, R = (
    int(c) for c in (WordClass.NOUN, WordClass.ADJECTIVE, WordClass.VERB, WordClass.OTHER)
)
IDS = np.arange(11, 21)[None, :]
CLASSES = np.array([[R, A, N, V, R, R, N, V, A, N]])


def reduced(reduction, keep, length=10, draws=None):
    draws = np.zeros((1, 10)) if draws is None else draws
    ids, lengths = reduce_tokens(reduction, IDS, CLASSES, np.array([length]), keep, draws)
    return ids[0, : lengths[0]].tolist()


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (2, [13, 17]),
        (3, [13, 17, 20]),
        (4, [12, 13, 17, 20]),
        (5, [12, 13, 17, 19, 20]),
        (6, [12, 13, 14, 17, 19, 20]),
        (8, [11, 12, 13, 14, 17, 18, 19, 20]),
    ],
)
def test_syntax_keeps_nouns_then_adjectives_then_verbs_then_the_rest_in_order(keep, kept):
    assert reduced("syntax", keep) == kept


def test_truncate_and_block_are_contiguous_and_block_reaches_both_ends():
    assert reduced("truncate", 4) == [11, 12, 13, 14]
    starts = {reduced("block", 4, draws=np.full((1, 10), u))[0] for u in np.linspace(0, 0.9999, 50)}
    assert starts == set(range(11, 18))
    for u in (0.0, 0.5, 0.9999):
        run = reduced("block", 4, draws=np.full((1, 10), u))
        assert run == list(range(run[0], run[0] + 4))


def test_random_keeps_order_and_every_token_alike():
    draws = uniforms(0, POSITIONS, Purpose.TEXT_TOKENS, 10)
    many = len(POSITIONS)
    ids, lengths = reduce_tokens(
        "random", IDS.repeat(many, 0), CLASSES.repeat(many, 0), np.full(many, 10), 4, draws
    )
    assert (lengths == 4).all() and (np.diff(ids, axis=1) > 0).all()
    share = np.bincount(ids.reshape(-1), minlength=21)[11:] / many
    assert abs(share - 0.4).max() < 0.04


@pytest.mark.parametrize("reduction", ["truncate", "random", "block", "syntax"])
def test_a_caption_that_fits_is_untouched(reduction):
    draws = uniforms(3, np.array([5]), Purpose.TEXT_TOKENS, 10)
    assert reduced(reduction, 6, length=5, draws=draws) == [11, 12, 13, 14, 15]
    assert reduced(reduction, 12, draws=draws) == list(range(11, 21))


def test_special_tokens_survive_every_reduction():
    kept, lengths = np.array([[11, 12, 13], [14, 0, 0]]), np.array([3, 1])
    vocabulary = Vocabulary(size=60, pad_id=7, bos_id=50, eos_id=51)
    both = add_specials(kept, lengths, "bos_eos", vocabulary)
    assert both.tolist() == [[50, 11, 12, 13, 51], [50, 14, 51, 7, 7]]
    assert add_specials(kept, lengths, "bos", vocabulary).tolist() == [
        [50, 11, 12, 13], [50, 14, 7, 7]
    ]  # fmt: skip
    assert add_specials(kept, lengths, "eos", vocabulary).tolist() == [
        [11, 12, 13, 51], [14, 51, 7, 7]
    ]  # fmt: skip
