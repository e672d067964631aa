"""Token reduction keeps exactly what it says: sorted, unique, counted, seeded, in order."""

from typing import get_args

import numpy as np
import pytest

from pretrain.base.seeding import Purpose, uniforms
from pretrain.tokens.context import add_specials
from pretrain.tokens.image_reduction import block_shape, draws_needed, keep_index, kept_count
from pretrain.tokens.text_reduction import TextReduction, reduce_tokens
from pretrain.tokens.vocabulary import Vocabulary
from pretrain.tokens.word_classes import SENTENCE_START, WordClass

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
    ids, lengths = reduce_tokens(
        reduction, IDS, CLASSES, np.array([length]), keep, draws, np.arange(30)
    )
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


@pytest.mark.parametrize("reduction", get_args(TextReduction))
def test_a_caption_that_fits_is_untouched(reduction):
    draws = uniforms(3, np.array([5]), Purpose.TEXT_TOKENS, 10)
    assert reduced(reduction, 6, length=5, draws=draws) == [11, 12, 13, 14, 15]
    assert reduced(reduction, 12, draws=draws) == list(range(11, 21))


COUNTS = np.array([0] * 11 + [1000, 10, 400, 3, 3, 90, 2500, 40, 1, 700])  # of the ids 11…20


def clipf(draws, frequencies, keep):
    """arXiv 2412.16148's rule itself: mask a word by 1 - sqrt(t / f), t as low as K words allow."""
    thresholds = np.geomspace(1e-9, 1, 3000)[:, None]
    masked = np.maximum(0, 1 - np.sqrt(thresholds / frequencies))
    stay = draws < 1 - masked
    return np.flatnonzero(stay[(stay.sum(axis=1) >= keep).argmax()]).tolist()


def test_frequency_masks_as_clipf_does():
    frequencies = COUNTS[11:] / COUNTS.sum()
    rng = np.random.default_rng(0)
    direct = np.zeros(10)
    for _ in range(1000):
        draws = rng.random((1, 10))
        wanted = clipf(draws[0], frequencies, 4)
        direct[wanted] += 1
        ids, lengths = reduce_tokens("frequency", IDS, CLASSES, np.array([10]), 4, draws, COUNTS)
        if len(wanted) == 4:  # two tokens may come in at one step of the threshold
            assert (ids[0] - 11).tolist() == wanted, (draws, ids)
    many = len(POSITIONS)
    draws = uniforms(0, POSITIONS, Purpose.TEXT_TOKENS, 10)
    ids, lengths = reduce_tokens(
        "frequency", IDS.repeat(many, 0), CLASSES.repeat(many, 0), np.full(many, 10), 4, draws,
        COUNTS,
    )  # fmt: skip
    assert (lengths == 4).all() and (np.diff(ids, axis=1) > 0).all()
    share = np.bincount(ids.reshape(-1), minlength=21)[11:] / many
    worst = abs(share - direct / 1000).max()
    assert worst < 0.06, f"largest difference of a share: {worst}"  # 3 sigma of 1,000 draws


def test_of_two_tokens_the_rare_one_stays_by_the_formula_s_odds():
    many = len(POSITIONS)
    draws = uniforms(1, POSITIONS, Purpose.TEXT_TOKENS, 2)
    ids, _ = reduce_tokens(
        "frequency", np.array([[0, 1]]).repeat(many, 0), np.zeros((many, 2), np.int64),
        np.full(many, 2), 1, draws, np.array([25, 1]),
    )  # fmt: skip
    # u * 1 < v * 5 for uniform u, v: all but a triangle of 1 / 10.
    assert abs(ids.mean() - 0.9) < 0.02


MARKS = np.array([[1, 0, 0, 1, 0, 0, 0, 0, 1, 0]]) * SENTENCE_START | CLASSES


def test_sentence_starts_at_each_sentence_alike_and_is_cut():
    many = len(POSITIONS)
    draws = uniforms(0, POSITIONS, Purpose.TEXT_TOKENS, 10)
    ids, lengths = reduce_tokens(
        "sentence", IDS.repeat(many, 0), MARKS.repeat(many, 0), np.full(many, 10), 4, draws
    )
    found = {tuple(row[:n]): 0 for row, n in zip(ids.tolist(), lengths, strict=True)}
    for row, n in zip(ids.tolist(), lengths, strict=True):
        found[tuple(row[:n])] += 1
        assert not any(row[n:])
    starts = [i for i, mark in enumerate(MARKS[0]) if mark & SENTENCE_START]
    wanted = {tuple(IDS[0, start : start + 4].tolist()) for start in starts}
    assert set(found) == wanted == {(11, 12, 13, 14), (14, 15, 16, 17), (19, 20)}
    assert abs(np.array(list(found.values())) / many - 1 / 3).max() < 0.04


def test_sentence_marks_behind_a_caption_s_end_and_none_at_all_begin_nothing():
    draws = np.full((1, 10), 0.99)
    marks = np.concatenate([CLASSES[:, :6], CLASSES[:, 6:] | SENTENCE_START], axis=1)
    ids, lengths = reduce_tokens("sentence", IDS, marks, np.array([6]), 4, draws)
    assert ids[0].tolist() == [11, 12, 13, 14] and lengths.tolist() == [4]


def test_syntax_sees_the_class_beside_the_sentence_s_mark():
    draws = np.zeros((1, 10))
    plain = reduce_tokens("syntax", IDS, CLASSES, np.array([10]), 4, draws)[0]
    assert (reduce_tokens("syntax", IDS, MARKS, np.array([10]), 4, draws)[0] == plain).all()


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
