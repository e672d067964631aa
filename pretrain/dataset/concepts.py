"""Concepts: which group each row of a dataset belongs to, in DIR/concepts/NAME.npy.

A group is a cluster of like pictures, or a value of a metadata column.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.beside import check_rows, find_rows, map_rows, write_rows
from pretrain.dataset.manifest import Manifest, concepts_file


def write_concepts(
    dataset_dir: Path, name: str, manifest: Manifest, concepts: NDArray[np.integer]
) -> Path:
    """Write (samples,) numbers of concepts as DATASET/concepts/NAME.npy, which it returns."""
    path = concepts_file(dataset_dir, name, "--out")
    return write_rows(path, manifest, concepts.astype("<i4", copy=False))


def read_concepts(
    dataset_dir: Path, name: str, manifest: Manifest, option: str
) -> tuple[NDArray[np.int32], str]:
    """(samples,) numbers from 0 of DATASET/concepts/NAME.npy, mapped and checked, and the file's
    sha256.

    FileNotFoundError or ValueError name the file, its fault and `option`. Reads the whole file: 4
    bytes a row.
    """
    path, asked = concepts_file(dataset_dir, name, option), f"{option}={name!r}"
    find_rows(path, asked)
    numbers: NDArray[np.int32] = map_rows(path, asked)
    make = f"python -m data_prep weigh {dataset_dir} --by COLUMN --out {name}"
    if numbers.dtype != np.dtype("<i4") or numbers.shape != (manifest.samples,):
        raise ValueError(
            f"{asked}: {path} holds {numbers.dtype} of shape {numbers.shape}, expected int32 of "
            f"({manifest.samples},): make it again with `{make}`"
        )
    if (least := int(numbers.min())) < 0:
        raise ValueError(f"{asked}: {path} has the concept {least}: make it again with `{make}`")
    return numbers, check_rows(path, manifest, asked, make)
