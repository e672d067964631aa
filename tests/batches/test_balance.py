"""Concept-balanced batches: the most even choice there is, the same for any ranks, from one's own
lanes."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pretrain.batches.balance import Balance
from pretrain.batches.order import SampleOrder
from pretrain.dataset.sample_weights import SampleWeights


def long_tail(samples: int, concepts: int, seed: int = 0) -> np.ndarray:
    """(samples,) concepts, the k-th as common as 1 / k."""
    shares = 1 / np.arange(1, concepts + 1)
    draws = np.random.default_rng(seed).choice(concepts, samples, p=shares / shares.sum())
    return draws.astype(np.int32)


def chosen_by_hand(concepts: list[int], count: int) -> list[int]:
    """How many of each concept plain greed takes: the next is always of the least taken one."""
    left, taken = Counter(concepts), Counter[int]()
    for _ in range(count):
        least = min((one for one in left if left[one] > taken[one]), key=lambda one: taken[one])
        taken[least] += 1
    return sorted(taken.values())


def entropy_bits(concepts: np.ndarray) -> float:
    shares = np.unique(concepts, return_counts=True)[1] / len(concepts)
    return float(-(shares * np.log2(shares)).sum())


def balanced(concepts: np.ndarray, candidates: int, weights: np.ndarray | None = None):
    weighing = None if weights is None else SampleWeights(weights)
    balance = Balance(concepts, candidates=candidates, weights=weighing)
    return SampleOrder(samples=len(concepts), seed=3, weights=weighing, balance=balance)


@pytest.fixture
def eight_lanes(monkeypatch):
    monkeypatch.setattr("pretrain.batches.order.LANE_SAMPLES", 2500)
    monkeypatch.setattr("pretrain.batches.order.CHUNK_SAMPLES", 64)


@pytest.mark.parametrize(("candidates", "batch"), [(5, 64), (2, 16), (1, 8), (4, 250)])
def test_in_one_lane_the_choice_is_that_of_plain_greed(candidates, batch):
    concepts = long_tail(4000, 300)
    order = balanced(concepts, candidates)
    plain = SampleOrder(samples=4000, seed=3)
    for step in range(4000 // (candidates * batch)):
        positions = order.share(step * batch, batch, 0, 1)
        within = range(step * batch * candidates, (step + 1) * batch * candidates)
        assert len(positions) == batch and set(positions.tolist()) <= set(within)
        assert (np.diff(positions) > 0).all()
        asked = concepts[plain.rows(np.arange(within.start, within.stop))].tolist()
        found = Counter(concepts[order.rows(positions)].tolist())
        assert sorted(found.values()) == chosen_by_hand(asked, batch)


def test_no_choice_is_more_even():
    for seed in range(20):
        concepts = long_tail(12, 5, seed)
        order = balanced(concepts, 2)
        found = concepts[order.rows(order.share(0, 6, 0, 1))]
        most = max(entropy_bits(np.array(one)) for one in itertools.combinations(concepts, 6))
        assert abs(entropy_bits(found) - most) < 1e-12, (seed, entropy_bits(found), most)


def test_ranks_choose_the_same_batch_each_from_its_own_lanes(eight_lanes):
    concepts = long_tail(20_000, 500)
    order = balanced(concepts, 5)
    assert order.lanes == 8
    for first in (0, 64, 3008, 3968, 4032):  # the stream's first epoch ends at sample 4,000
        whole = order.rows(order.share(first, 64, 0, 1))
        for ranks in (2, 4, 8, 16):
            others = [balanced(concepts, 5) for _ in range(ranks)]  # nothing known of each other
            shares = [one.share(first, 64, rank, ranks) for rank, one in enumerate(others)]
            assert np.array_equal(np.concatenate([*map(order.rows, shares)]), whole)
            if first % 4000 < 3900 and ranks <= 8:
                for rank, share in enumerate(shares):
                    assert (order.rows(share) * ranks // 20_000 == rank).all(), (first, ranks, rank)


@pytest.mark.parametrize("batch", [64, 60, 7, 8 * 31])
def test_lanes_give_equal_shares_and_batches_of_any_size_are_whole(eight_lanes, batch):
    order = balanced(long_tail(20_003, 500), 3)
    for first in range(0, 20_003, 20_003 // batch * batch // 4 + 1):
        positions = order.share(first, batch, 0, 1)
        assert len(np.unique(positions)) == batch
        assert positions.min() >= 3 * first and positions.max() < 3 * (first + batch)
        lanes = np.bincount(positions % 20_003 % 8, minlength=8)
        assert lanes.max() - lanes.min() <= (0 if batch % 8 == 0 and first < 6000 else 2), lanes


def test_lanes_that_choose_apart_are_nearly_as_even_as_one_choice_of_all(eight_lanes):
    concepts = long_tail(20_000, 500)
    apart, plain = balanced(concepts, 5), SampleOrder(samples=20_000, seed=3)
    found = []
    for first in range(0, 3584, 512):
        asked = concepts[plain.rows(np.arange(5 * first, 5 * (first + 512)))]
        of_all = Counter(dict(enumerate(chosen_by_hand(asked.tolist(), 512))))
        best = entropy_bits(np.array(list(of_all.elements())))
        ours = entropy_bits(concepts[apart.rows(apart.share(first, 512, 0, 1))])
        found.append((ours, best, entropy_bits(asked[:512])))
    ours, best, unbalanced = np.mean(found, 0)
    assert ours > best - 0.2 * (best - unbalanced), (ours, best, unbalanced)


def test_a_row_that_comes_again_is_chosen_once_and_none_of_weight_zero(eight_lanes):
    weights = np.ones(20_000, np.float32)
    weights[::7] = 6.0
    weights[1::7] = 0
    concepts = np.where(weights == 6, 1, long_tail(20_000, 500) + 2).astype(np.int32)
    order = balanced(concepts, 5, weights)
    plain = SampleOrder(samples=20_000, seed=3, weights=SampleWeights(weights))
    repeats = 0
    for first in range(0, 3000, 600):
        rows = order.rows(order.share(first, 600, 0, 1))
        assert len(np.unique(rows)) == 600 and (weights[rows] > 0).all()
        asked = plain.rows(np.arange(5 * first, 5 * (first + 600)))
        repeats += len(asked) - len(np.unique(asked))
    assert repeats > 1000  # so there were some to choose
