"""The shuffle is good, epochs differ, and every rank reads its own part of the disk."""

from functools import cache

import numpy as np
import pytest

from pretrain.batches.order import CHUNK_SAMPLES, SampleOrder

# Four lanes, and a window small beside them, as 65,536 in a batch are beside 400 million.
SAMPLES, BATCH = (1 << 22) + 777, 4096
WINDOW = 16 * BATCH


@cache
def epoch(number: int) -> np.ndarray:
    """Rows of an epoch by their place in it."""
    order = SampleOrder(samples=SAMPLES, seed=1, window_samples=WINDOW)
    assert order.lanes == 4
    return order.rows(np.arange(number * SAMPLES, (number + 1) * SAMPLES))


def batch_of_row(number: int) -> np.ndarray:
    out = np.empty(SAMPLES, np.int64)
    out[epoch(number)] = np.arange(SAMPLES) // BATCH
    return out


def test_lanes_visit_every_row_once_an_epoch():
    for number in range(2):
        assert (np.bincount(epoch(number), minlength=SAMPLES) == 1).all()


def test_a_sample_lands_anywhere():
    """A uniform permutation moves a sample by a third of the epoch on average."""
    moved = np.abs(epoch(0) - np.arange(SAMPLES)).mean() / SAMPLES
    assert abs(moved - 1 / 3) < 0.02, moved


def test_neighbours_on_disk_meet_rarely_and_not_again():
    meets = [np.diff(batch_of_row(number)) == 0 for number in range(3)]
    share = [m.mean() for m in meets]
    # Chance within one window of at least 16 batches; the last of a lane may be twice as wide.
    assert all(0.02 < s < 1.1 * BATCH / WINDOW for s in share), share
    again = [(meets[0] & meets[1]).mean(), (meets[1] & meets[2]).mean()]
    expected = [share[0] * share[1], share[1] * share[2]]
    assert np.allclose(again, expected, rtol=0.1), (again, expected)


def test_rows_of_a_chunk_part_at_other_places_every_epoch():
    """Neighbours that a border parts lie in other windows; old borders never moved."""
    borders = []
    for number in range(3):
        place = np.empty(SAMPLES, np.int64)
        place[epoch(number)] = np.arange(SAMPLES)
        parted = np.flatnonzero(np.abs(np.diff(place)) > 4 * WINDOW) + 1
        offsets = np.bincount(parted[parted < SAMPLES // 4] % CHUNK_SAMPLES)
        assert offsets.max() > 0.95 * offsets.sum()  # one offset, but for the lanes' own border
        borders.append(int(offsets.argmax()))
    assert len(set(borders)) == 3, borders


@pytest.mark.parametrize(("batch", "foreign_a_batch"), [(BATCH, 0), (BATCH - 2, 1)])
def test_ranks_read_their_own_part_of_the_disk(batch, foreign_a_batch):
    """Steps across an epoch's end too, where the samples do not fit the lanes: there, and with a
    batch that the lanes do not divide, single rows are a neighbour's."""
    order = SampleOrder(samples=SAMPLES, seed=1, window_samples=WINDOW)
    for ranks in (1, 2, 4) if foreign_a_batch == 0 else (1, 2):
        for rank in range(ranks):
            firsts = range(SAMPLES - 100 * batch, SAMPLES + 100 * batch, batch)
            rows = np.concatenate([order.rows(order.share(f, batch, rank, ranks)) for f in firsts])
            low, high = rank * SAMPLES // ranks, (rank + 1) * SAMPLES // ranks
            foreign = ((rows < low - 1) | (rows >= high + 1)).sum()
            assert foreign <= foreign_a_batch * len(firsts) + 2, (ranks, rank, foreign)
            assert np.mean((rows >= low) & (rows < high)) > 0.999


def test_the_batch_of_all_ranks_is_one_batch_in_one_order():
    order = SampleOrder(samples=SAMPLES, seed=1, window_samples=WINDOW)
    for first in (0, 12_345, SAMPLES - 100):
        whole = order.share(first, BATCH, 0, 1)
        assert (np.sort(whole) == np.arange(first, first + BATCH)).all()
        for ranks in (2, 4, 8, 16):
            parts = [order.share(first, BATCH, rank, ranks) for rank in range(ranks)]
            assert (np.concatenate(parts) == whole).all()


def test_a_row_does_not_depend_on_what_was_asked_before():
    asked = np.random.default_rng(0).integers(0, 2 * SAMPLES, 50)
    fresh = [
        SampleOrder(samples=SAMPLES, seed=1, window_samples=WINDOW).rows(asked[i : i + 1])[0]
        for i in range(0, 50, 10)
    ]
    both = np.concatenate([epoch(0), epoch(1)])
    assert (both[asked[::10]] == fresh).all()
