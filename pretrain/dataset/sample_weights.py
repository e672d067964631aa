"""Sample weights: how often each row of a dataset is shown an epoch, in DIR/weights/NAME.npy."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.beside import check_rows, find_rows, map_rows, write_rows
from pretrain.dataset.manifest import Manifest, weights_file

_BLOCK_ROWS = 1 << 13  # rows whose sums are kept: 50,000 numbers for 400 million rows

_MOST_SHOWN = 1e15  # places in an epoch are exact in float64


class SampleWeights:
    """(samples,) float32 weights, mapped. Systematic resampling shows a row as often as it weighs.

    An epoch lays its epoch_samples points at equal distances, 1 but for rounding the weights' sum
    to a whole number, over the weights laid end to end, and shows each point's row. So a row comes
    floor or ceil of its weight times an epoch (but for that rounding, at most half a sample in all
    an epoch), and which of the two is drawn anew by where the first point lies. In memory are only
    the sums of blocks.
    """

    def __init__(self, weights: NDArray[np.float32], sha256: str = "") -> None:
        self.sha256 = sha256
        self.values = weights
        starts = np.arange(0, len(weights), _BLOCK_ROWS)
        # Block by block: a cast of the whole would double the file in memory.
        sums = [float(weights[s : s + _BLOCK_ROWS].sum(dtype=np.float64)) for s in starts]
        self._ends = np.cumsum(sums)
        total = float(self._ends[-1])
        self.epoch_samples = max(round(total), 1)
        self._step = total / self.epoch_samples

    def rows(self, points: NDArray[np.int64], start: float) -> NDArray[np.int64]:
        """Row of each point 0…epoch_samples of an epoch, the first of which lies at `start`, from 0
        to 1; the rows ascend with the points. Those of weight 0 are never among them."""
        return self._at((points.astype(np.float64) + start) * self._step)

    def pick(self, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Row for each uniform draw in [0, 1), as likely as it weighs."""
        return self._at(draws * self._ends[-1])

    def _at(self, places: NDArray[np.float64]) -> NDArray[np.int64]:
        places = np.minimum(places, np.nextafter(self._ends[-1], 0))
        blocks = np.searchsorted(self._ends, places, side="right")
        order = np.argsort(blocks, kind="stable")
        out = np.empty(len(places), np.int64)
        for mine in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
            block = int(blocks[mine[0]])
            first = block * _BLOCK_ROWS
            begin = self._ends[block - 1] if block else 0.0
            weights = self.values[first : first + _BLOCK_ROWS]
            ends = begin + np.cumsum(weights, dtype=np.float64)
            # Summed in another order than the block's sum, the last end can lie a bit before it.
            inside = np.minimum(places[mine], np.nextafter(ends[-1], 0))
            out[mine] = first + np.searchsorted(ends, inside, side="right")
        return out


def write_weights(
    dataset_dir: Path, name: str, manifest: Manifest, weights: NDArray[np.floating]
) -> Path:
    """Write (samples,) weights of a dataset as DATASET/weights/NAME.npy, which it returns."""
    path = weights_file(dataset_dir, name, "--out")
    return write_rows(path, manifest, weights.astype("<f4", copy=False))


def open_weights(dataset_dir: Path, name: str, manifest: Manifest) -> SampleWeights:
    """The weights of DATASET/weights/NAME.npy, with their file's sha256.

    FileNotFoundError or ValueError name the file, its fault and data.weights. Reads the whole file:
    4 bytes a row.
    """
    values, sha256 = read_weights(dataset_dir, name, manifest, "data.weights")
    return SampleWeights(values, sha256)


def read_weights(
    dataset_dir: Path, name: str, manifest: Manifest, option: str
) -> tuple[NDArray[np.float32], str]:
    """(samples,) of DATASET/weights/NAME.npy, mapped and checked, and the file's sha256; errors
    name `option`."""
    path, asked = weights_file(dataset_dir, name, option), f"{option}={name!r}"
    find_rows(path, asked)
    values = open_values(path, manifest.samples, asked)
    make = f"python -m data_prep weigh {dataset_dir} --file FILE.npy --out {name}"
    return values, check_rows(path, manifest, asked, make)


def open_values(
    path: Path, samples: int, option: str, *, given: bool = False
) -> NDArray[np.float32]:
    """(samples,) finite weights of a .npy file, mapped; ValueError names the option, the file and
    its fault.

    given: by a user, as any numbers; float32 is made of them.
    """
    values: NDArray[np.float32] = map_rows(path, option)
    if given and values.dtype.kind in "fiu":
        with np.errstate(over="ignore"):  # to infinity, which is a fault
            values = values.astype("<f4", copy=False)
    if fault := _fault(values, samples):
        raise ValueError(
            f"{option}: {path} {fault}: make it again with `python -m data_prep weigh`, or leave "
            f"{option.partition('=')[0]} out"
        )
    return values


def _fault(values: NDArray[np.float32], samples: int) -> str | None:
    """What is wrong with weights of a dataset of so many samples; None if nothing."""
    if values.dtype != np.dtype("<f4") or values.shape != (samples,):
        return f"holds {values.dtype} of shape {values.shape}, expected float32 of ({samples},)"
    total = 0.0
    for first in range(0, samples, _BLOCK_ROWS):
        block = values[first : first + _BLOCK_ROWS]
        wrong = ~(np.isfinite(block) & (block >= 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            return f"has {block[row]} in row {first + row}, needed are finite weights of at least 0"
        total += float(block.sum(dtype=np.float64))
    if total > _MOST_SHOWN:
        return f"has weights of {total:g} in all, an epoch can show at most {_MOST_SHOWN:g} samples"
    return None if total else "has only zeros, so that nothing would be shown"
