"""Sample order: which sample lies at which position of the run, as a pure function.

Nothing here has a state: row = f(seed, position). So the order does not depend on the number of
ranks or workers, and a resume is one integer.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pretrain.seeding import Purpose, hashes

CHUNK_SAMPLES = 1024  # neighbours on disk: read together, so kept in one window
WINDOW_CHUNKS = 64  # chunks shuffled into each other: 65,536 samples apart at the most


class SampleOrder:
    """The endless, shuffled stream of rows of a dataset with `samples` rows.

    Every epoch is a permutation of all rows: chunks of neighbouring rows are permuted, windows of
    WINDOW_CHUNKS chunks are formed, and each window is permuted sample by sample. Position p lies
    in epoch p // samples.
    """

    def __init__(self, *, samples: int, seed: int) -> None:
        if samples < 1:
            raise ValueError("the dataset has no samples: check data.train")
        self.samples = samples
        self.seed = seed
        chunks = -(-samples // CHUNK_SAMPLES)
        self._windows = -(-chunks // WINDOW_CHUNKS)
        self._chunks = chunks

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the index for each position; any shape, any order of positions."""
        flat = positions.reshape(-1)
        out = np.empty_like(flat)
        epochs = flat // self.samples
        for epoch in np.unique(epochs):
            _, ends = self._epoch(int(epoch))
            inside = np.flatnonzero(epochs == epoch)
            offsets = flat[inside] - epoch * self.samples
            windows = np.searchsorted(ends, offsets, side="right")
            for window in np.unique(windows):
                members = windows == window
                start = ends[window - 1] if window else 0
                table = self._window(int(epoch), int(window))
                out[inside[members]] = table[offsets[members] - start]
        return out.reshape(positions.shape)

    @lru_cache(maxsize=2)  # noqa: B019 - one order lives as long as the process
    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(chunks in this epoch's order, end offset of each window)."""
        chunks = self._generator(epoch, 0).permutation(self._chunks)
        sizes = np.full(self._chunks, CHUNK_SAMPLES, np.int64)
        sizes[-1] = self.samples - (self._chunks - 1) * CHUNK_SAMPLES
        cuts = np.arange(0, self._chunks, WINDOW_CHUNKS)
        return chunks, np.cumsum(np.add.reduceat(sizes[chunks], cuts))

    @lru_cache(maxsize=4)  # noqa: B019
    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Rows of one window in their shuffled order."""
        chunks, _ = self._epoch(epoch)
        mine = chunks[window * WINDOW_CHUNKS : (window + 1) * WINDOW_CHUNKS]
        rows = (mine[:, None] * CHUNK_SAMPLES + np.arange(CHUNK_SAMPLES)[None, :]).reshape(-1)
        rows = rows[rows < self.samples]
        return rows[self._generator(epoch, window + 1).permutation(len(rows))]

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        key = hashes(self.seed, np.asarray([epoch], np.int64), Purpose.ORDER, 1)
        return np.random.Generator(np.random.Philox(key=int(key[0, 0]), counter=stream << 64))
