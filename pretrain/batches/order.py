"""Sample order: which sample lies at which position of the run, as a pure function.

Nothing here has a state: row = f(seed, position), and the weights where there are some. So the
order does not depend on the number of ranks or workers, nor on the stages' batches, and a resume is
one integer. Where batches are balanced, which positions are trained on is a function of the seed,
the batch's place in the run, and the concepts.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pretrain.base.seeding import Purpose, hashes
from pretrain.batches.balance import Balance
from pretrain.dataset.sample_weights import SampleWeights

CHUNK_SAMPLES = 1024  # neighbours on disk: one piece of about 10 MB to read ahead
WINDOW_SAMPLES = 1 << 21  # 32 global batches of 65,536
LANE_SAMPLES = 1 << 20  # a lane has at least as many, so that its own shuffle is worth having
MAX_LANES = 256


def lane_count(epoch_samples: int) -> int:
    """Lanes of a dataset: the largest power of two that leaves LANE_SAMPLES for each."""
    return min(1 << max((epoch_samples // LANE_SAMPLES).bit_length() - 1, 0), MAX_LANES)


@dataclass(frozen=True, kw_only=True)
class _LanePlan:
    """One lane in one epoch."""

    chunks: NDArray[np.int64]  # in this epoch's order
    borders: NDArray[np.int64]  # (chunks + 1,) samples of the epoch at which the chunks begin
    cuts: NDArray[np.int64]  # (windows + 1,) places in `chunks`
    ends: NDArray[np.int64]  # (windows,) end of each window, in samples of the lane


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a lane's part of the stream whose samples are shuffled into each other."""

    lane: int
    epoch: int
    number: int  # in its lane and epoch
    past: float  # the share of it that lies before the position asked for


class SampleOrder:
    """The endless, shuffled stream of rows of a dataset with `samples` rows.

    Position p lies in epoch p // epoch_samples. An epoch is a permutation of all rows, or of what
    the weights show of them. Its samples are cut into lanes, contiguous shares of the disk, which
    the positions visit in turn; each lane permutes its chunks of neighbours, whose borders lie
    elsewhere every epoch, and then permutes windows of these sample by sample. The windows of all
    lanes together hold `window_samples` samples, up to twice as many where it comes out so: 16 to
    32 MB of memory on one rank, kept for two windows, and a rank's share of this on many.

    So a sample moves by a third of an epoch on average, as in a uniform permutation; neighbours on
    disk meet in one batch with a chance of at most batch / window_samples (1 in 32 at 65,536), and
    whether they met says nothing of the next epoch.

    With a `balance`, the batch at sample s of the run is chosen from positions s x candidates and
    on, and what is not chosen is skipped. A run's samples count the chosen ones alone. An epoch of
    a run is as many samples as without a balance, in which the stream passes `candidates` times.
    """

    def __init__(
        self,
        *,
        samples: int,
        seed: int,
        window_samples: int = WINDOW_SAMPLES,
        weights: SampleWeights | None = None,
        balance: Balance | None = None,
    ) -> None:
        if samples < 1:
            raise ValueError("the dataset has no samples: check data.train")
        self.seed = seed
        self.epoch_samples = samples if weights is None else weights.epoch_samples
        self.lanes = lane_count(self.epoch_samples)
        self.window_samples = min(window_samples, self.epoch_samples)
        self._window_chunks = max(window_samples // (self.lanes * CHUNK_SAMPLES), 1)
        self._weights = weights
        self._balance = balance
        self.candidates = 1 if balance is None else balance.candidates
        # Two of each: workers build batches on both sides of a border.
        self._plan = lru_cache(maxsize=2 * self.lanes)(self._build_plan)
        self._table = lru_cache(maxsize=2 * self.lanes)(self._build_table)

    def share(self, first: int, samples: int, rank: int, ranks: int) -> NDArray[np.int64]:
        """A rank's positions of the global batch that begins at sample `first`: (samples/ranks,).

        It is the rank's slice of the batch sorted by lanes, so whole lanes where the ranks divide
        them and a batch has as many samples of each; all slices in turn are the same batch in the
        same order for any number of ranks.
        """
        first, count = first * self.candidates, samples * self.candidates
        positions = np.arange(first, first + count, dtype=np.int64)
        lanes = (positions % self.epoch_samples % self.lanes).astype(np.uint16)
        if self.lanes > 1:
            by_lane = np.argsort(lanes, kind="stable")
            positions, lanes = positions[by_lane], lanes[by_lane]
        begin, end = rank * (samples // ranks), (rank + 1) * (samples // ranks)
        if self._balance is None:
            return positions[begin:end]
        # Each lane chooses its own share, so that a rank needs to know its own lanes alone.
        borders = np.searchsorted(lanes, np.arange(self.lanes + 1))
        ends = borders // self.candidates
        its = slice(np.searchsorted(ends, begin, "right") - 1, np.searchsorted(ends, end) + 1)
        borders, ends = borders[its], ends[its]
        mine = positions[borders[0] : borders[-1]]
        chosen = self._balance.choose(
            self.seed, mine, self.rows(mine), borders - borders[0], np.diff(ends), count
        )
        return chosen[begin - ends[0] : end - ends[0]]

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the index for each position; any shape, any order of positions."""
        flat = positions.reshape(-1)
        out = np.empty_like(flat)
        epochs, inside = np.divmod(flat, self.epoch_samples)
        offsets, lanes = np.divmod(inside, self.lanes)
        for of_lane in _groups(epochs * self.lanes + lanes):
            epoch, lane = int(epochs[of_lane[0]]), int(lanes[of_lane[0]])
            ends = self._plan(epoch, lane).ends
            windows = np.searchsorted(ends, offsets[of_lane], side="right")
            for members in _groups(windows):
                window = int(windows[members[0]])
                places = of_lane[members]
                table = self._table(epoch, lane, window)
                out[places] = table[offsets[places] - (ends[window - 1] if window else 0)]
        return out.reshape(positions.shape)

    def windows(self, first: int, rank: int, ranks: int) -> list["Window"]:
        """The windows that hold a rank's samples at a sample of the run, one a lane."""
        found = []
        epoch, inside = divmod(first * self.candidates, self.epoch_samples)
        offset = inside // self.lanes
        for lane in range(rank * self.lanes // ranks, -(-(rank + 1) * self.lanes // ranks)):
            ends = self._plan(epoch, lane).ends
            number = int(np.searchsorted(ends[:-1], offset, side="right"))
            begin = int(ends[number - 1]) if number else 0
            past = min((offset - begin) / int(ends[number] - begin), 1.0)
            found.append(Window(lane=lane, epoch=epoch, number=number, past=past))
        return found

    def following(self, window: "Window") -> "Window":
        """The window that comes after one in its lane."""
        more = window.number + 1 < len(self._plan(window.epoch, window.lane).ends)
        epoch, number = (window.epoch, window.number + 1) if more else (window.epoch + 1, 0)
        return Window(lane=window.lane, epoch=epoch, number=number, past=0.0)

    def stretches(self, window: "Window") -> list[tuple[int, int]]:
        """(first, stop) rows of each chunk of a window: pieces of the disk."""
        plan = self._plan(window.epoch, window.lane)
        mine = plan.chunks[plan.cuts[window.number] : plan.cuts[window.number + 1]]
        borders = [(int(plan.borders[c]), int(plan.borders[c + 1])) for c in mine]
        filled = [(first, stop) for first, stop in borders if first < stop]
        if self._weights is None:
            return filled
        start = self._draw(window.epoch, 1) * 2.0**-64
        ends = self._weights.rows(np.asarray(filled).reshape(-1) - [0, 1] * len(filled), start)
        return [(int(first), int(last) + 1) for first, last in ends.reshape(-1, 2)]

    def _build_plan(self, epoch: int, lane: int) -> _LanePlan:
        each, more = divmod(self.epoch_samples, self.lanes)
        first, size = lane * each + min(lane, more), each + (lane < more)
        shift = self._draw(epoch, 2) % CHUNK_SAMPLES
        count = -(-(size + shift) // CHUNK_SAMPLES)
        chunks = self._generator(epoch, lane, 0).permutation(count)
        borders = first + np.clip(np.arange(count + 1) * CHUNK_SAMPLES - shift, 0, size)
        # Evenly, so that an epoch does not end on a window of a few neighbours.
        windows = max(count // self._window_chunks, 1)
        cuts = np.arange(windows + 1) * count // windows
        ends = np.cumsum(np.add.reduceat(np.diff(borders)[chunks], cuts[:-1]))
        return _LanePlan(chunks=chunks, borders=borders, cuts=cuts, ends=ends)

    def _build_table(self, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
        """Rows of one window of a lane in their shuffled order."""
        plan = self._plan(epoch, lane)
        mine = plan.chunks[plan.cuts[window] : plan.cuts[window + 1]]
        rows = np.concatenate([np.arange(*plan.borders[c : c + 2]) for c in mine])
        if self._weights is not None:
            rows = self._weights.rows(rows, self._draw(epoch, 1) * 2.0**-64)
        return rows[self._generator(epoch, lane, window + 1).permutation(len(rows))]

    def _generator(self, epoch: int, lane: int, stream: int) -> np.random.Generator:
        counter = ((lane << 32) + stream) << 64
        return np.random.Generator(np.random.Philox(key=self._draw(epoch, 0), counter=counter))

    def _draw(self, epoch: int, number: int) -> int:
        draws = hashes(self.seed, np.asarray([epoch], np.int64), Purpose.ORDER, number + 1)
        return int(draws[0, number])


def _groups(values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places of equal values, together."""
    places = np.argsort(values, kind="stable")
    return np.split(places, np.flatnonzero(np.diff(values[places])) + 1)
