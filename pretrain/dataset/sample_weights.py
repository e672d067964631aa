"""Sample weights: how often each row of a dataset is shown an epoch, in files beside it.

DIR/weights/NAME.npy     float32, one a row
DIR/weights/NAME.json    of which state of the dataset, and the file's sha256
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrain.base.arrays import read_array
from pretrain.base.files import aside, file_sha256, write_durably
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
        self._weights = weights
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
            weights = self._weights[first : first + _BLOCK_ROWS]
            ends = begin + np.cumsum(weights, dtype=np.float64)
            # Summed in another order than the block's sum, the last end can lie a bit before it.
            inside = np.minimum(places[mine], np.nextafter(ends[-1], 0))
            out[mine] = first + np.searchsorted(ends, inside, side="right")
        return out


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What weights belong to: another dataset may have as many rows."""

    dataset_fingerprint: str  # sha256 of the manifest
    sha256: str  # of the weights' file


def write_weights(
    dataset_dir: Path, name: str, manifest: Manifest, weights: NDArray[np.floating]
) -> Path:
    """Write (samples,) weights of a dataset as DATASET/weights/NAME.npy, which it returns."""
    path = weights_file(dataset_dir, name, "--out")
    with aside(path) as file:
        np.lib.format.write_array(file, weights.astype("<f4", copy=False), allow_pickle=False)
    info = WeightsInfo(dataset_fingerprint=manifest.fingerprint, sha256=file_sha256(path))
    write_durably(path.with_suffix(".json"), json.dumps(asdict(info), indent=2) + "\n")
    return path


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
    path = weights_file(dataset_dir, name, option)
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.npy"))
        raise FileNotFoundError(
            f"{option}={name!r}: there is no {path}; {dataset_dir} has weights {found}: choose "
            "one of them, or make one with `python -m data_prep weigh`"
        )
    values = open_values(path, manifest.samples, f"{option}={name!r}")
    told = path.with_suffix(".json")
    try:
        info = TypeAdapter(WeightsInfo).validate_json(told.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ValueError(
            f"{option}={name!r}: {told} does not say which dataset {path.name} is of: make both "
            f"with `python -m data_prep weigh {dataset_dir} --file FILE.npy --out {name}`"
        ) from error
    if info.dataset_fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{option}={name!r}: {path} was made of another state of {dataset_dir} (fingerprint "
            f"{info.dataset_fingerprint[:12]}, now {manifest.fingerprint[:12]}): make it again"
        )
    sha256 = file_sha256(path)
    if info.sha256 != sha256:
        raise ValueError(
            f"{option}={name!r}: the sha256 of {path} is not that of {told.name}: make it again"
        )
    return values, sha256


def open_values(
    path: Path, samples: int, option: str, *, given: bool = False
) -> NDArray[np.float32]:
    """(samples,) finite weights of a .npy file, mapped; ValueError names the option, the file and
    its fault.

    given: by a user, as any numbers; float32 is made of them.
    """
    try:
        values = read_array(path)
    except ValueError as error:
        raise ValueError(f"{option}: {path} is {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"{option}: {path} cannot be read ({error.strerror or error}); name a .npy file"
        ) from error
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
        return f"holds {values.dtype} of shape {values.shape}, needed is float32 of ({samples},)"
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
