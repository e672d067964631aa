"""One number a row of a dataset, in files that stand beside it and came later.

DIR/FOLDER/NAME.npy     one number a row
DIR/FOLDER/NAME.json    of which state of the dataset, and the file's sha256
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrain.base.arrays import read_array
from pretrain.base.files import aside, file_sha256, write_durably
from pretrain.dataset.manifest import Manifest


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class RowsInfo:
    """What the numbers belong to: another dataset may have as many rows."""

    dataset_fingerprint: str  # sha256 of the manifest
    sha256: str  # of the numbers' file


def write_rows(path: Path, manifest: Manifest, values: NDArray[np.generic]) -> Path:
    """Write (samples,) numbers of a dataset as a file beside it, which it returns."""
    with aside(path) as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
    info = RowsInfo(dataset_fingerprint=manifest.fingerprint, sha256=file_sha256(path))
    write_durably(path.with_suffix(".json"), json.dumps(asdict(info), indent=2) + "\n")
    return path


def check_rows(path: Path, manifest: Manifest, option: str, make: str) -> str:
    """The sha256 of a file of numbers, which are of this state of the dataset.

    ValueError names the option, the file, its fault, and `make`, the command that makes it.
    """
    told = path.with_suffix(".json")
    try:
        info = TypeAdapter(RowsInfo).validate_json(told.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ValueError(
            f"{option}: {told} does not say which dataset {path.name} is of: make both with "
            f"`{make}`"
        ) from error
    if info.dataset_fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{option}: {path} was made from another version of {path.parents[1]} (fingerprint "
            f"{info.dataset_fingerprint[:12]}, now {manifest.fingerprint[:12]}): make it again"
        )
    sha256 = file_sha256(path)
    if info.sha256 != sha256:
        raise ValueError(
            f"{option}: the sha256 of {path} is not that of {told.name}: make it again"
        )
    return sha256


def find_rows(path: Path, option: str) -> None:
    """FileNotFoundError, which names those that are there, where there is no such file."""
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.npy"))
        raise FileNotFoundError(
            f"{option}: there is no {path}; {path.parents[1]} has {path.parent.name} {found}: "
            "choose one of them, or make one with `python -m data_prep weigh`"
        )


def map_rows(path: Path, option: str) -> NDArray[Any]:
    """The numbers, mapped; ValueError or FileNotFoundError name the option and the file."""
    try:
        return read_array(path)
    except ValueError as error:
        raise ValueError(f"{option}: {path} is {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"{option}: {path} cannot be read ({error.strerror or error}); name a .npy file"
        ) from error
