"""Concept-balanced batches: of several times as many samples, those of the rarest concepts.

Chosen on indices, before anything is decoded.
"""

import numpy as np
from numpy.typing import NDArray

from pretrain.base.seeding import Purpose, uniforms
from pretrain.dataset.sample_weights import SampleWeights

_BLOCK_ROWS = 1 << 20


class Balance:
    """Chooses samples so that a batch has alike many of each concept, as far as there are.

    It is CABS-DM (concept-aware batch sampling, diversity maximization; arXiv 2511.20643) for one
    concept a sample. There each next sample is the one with the largest gain (t - n) / t + 1 / F: n
    samples of its concept are chosen already, t is the same share of the batch for every concept,
    F its frequency. So the next one is always of a concept with the fewest chosen: all concepts
    fill to one level, or to their end. What the paper then fills at random is filled in this way
    too, and ties are drawn.

    concepts (samples,): number of each row's concept, from 0. candidates: samples that each chosen
    one is chosen of; 5 is the paper's filter ratio of 0.8.
    """

    def __init__(
        self,
        concepts: NDArray[np.int32],
        *,
        candidates: int,
        weights: SampleWeights | None = None,
        sha256: str = "",
    ) -> None:
        self.candidates = candidates
        self.sha256 = sha256
        self._concepts = concepts
        shown = np.zeros(int(concepts.max()) + 1)
        for first in range(0, len(concepts), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            how_often = None if weights is None else weights.values[block]
            shown += np.bincount(concepts[block], how_often, minlength=len(shown))
        self._shares = shown / shown.sum()

    def choose(
        self,
        seed: int,
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        borders: NDArray[np.int64],
        counts: NDArray[np.int64],
        of: int,
    ) -> NDArray[np.int64]:
        """Of the positions of each lane, as many as `counts` (lanes,) says, ascending in each.

        rows: theirs. borders (lanes + 1,): places at which lanes begin in both. of: positions that
        the batch is chosen from, in all lanes of all ranks. A sample's key is where it would stand
        among all these of its concept: exact in the one lane of a small dataset, else told from the
        concept's share of the dataset. A lane's smallest keys are chosen. So lanes choose apart,
        and yet no concept fills every lane's part of the batch. A row that comes again is chosen
        only where a lane has nothing else.
        """
        sizes = np.diff(borders)
        lanes = np.repeat(np.arange(len(sizes)), sizes)
        by_row, begins = _group(lanes * (rows.max() + 1) + rows)
        is_new = np.zeros(len(rows), bool)
        is_new[by_row[begins]] = True
        concepts = self._concepts[rows]
        together, begins = _group(lanes * len(self._shares) + concepts)
        members = np.diff(begins, append=len(rows))
        before = np.cumsum(is_new[together]) - is_new[together]
        place = before - np.repeat(before[begins], members)
        new = np.add.reduceat(is_new[together], begins, dtype=np.int64)
        leaders = together[begins]  # the first sample of each concept in a lane
        elsewhere = self._shares[concepts[leaders]] * (of - sizes[lanes[leaders]])
        draws = uniforms(seed, positions[leaders], Purpose.BALANCE, 1)[:, 0]
        spread = 1 + elsewhere / np.maximum(new, 1)
        keys = np.empty(len(rows))
        keys[together] = (place + np.repeat(draws, members)) * np.repeat(spread, members)
        keys[~is_new] = np.inf
        ranked = np.lexsort((keys, lanes))
        is_chosen = np.arange(len(rows)) - borders[lanes] < counts[lanes]
        return positions[np.sort(ranked[is_chosen])]


def _group(values: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places of all values, equal ones together and in turn; where each group of these begins).

    A sort of unique numbers, which is several times as fast as a stable argsort.
    """
    numbered = np.sort(values.astype(np.int64) * len(values) + np.arange(len(values)))
    ordered, places = np.divmod(numbered, len(values))
    return places, np.flatnonzero(np.diff(ordered, prepend=-1))
