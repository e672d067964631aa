"""Keys that occur more than once among any number of rows, in bounded memory."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

# Rows whose keys are sorted at once: 16 bytes each, and as much again for sorting.
BUCKET_ROWS = 1 << 22
_BUCKETS_CAP = 256  # files open at once; memory grows beyond a billion rows

_ENTRY = np.dtype([("key", "<u8"), ("row", "<u8")])


def find_repeated_rows(blocks: Iterable[np.ndarray], total: int, folder: Path) -> np.ndarray:
    """Sorted numbers of the rows whose key an earlier row has.

    `blocks` are the keys of `total` rows in order, 16 hex digits each. They are spread over files
    in `folder` by their last bits, so that equal keys meet in one file: 16 bytes a row of disk.
    """
    buckets = min(_BUCKETS_CAP, max(1, -(-total // BUCKET_ROWS)))
    with TemporaryDirectory(dir=folder) as spill:
        files = [(Path(spill) / str(bucket)).open("w+b") for bucket in range(buckets)]
        try:
            first = 0
            for keys in blocks:
                entries = np.empty(len(keys), _ENTRY)
                entries["key"] = np.frombuffer(bytes.fromhex(keys.tobytes().decode()), ">u8")
                entries["row"] = np.arange(first, first + len(keys))
                first += len(keys)
                bucket = entries["key"] % np.uint64(buckets)
                for number in np.unique(bucket):
                    files[number].write(entries[bucket == number].tobytes())
            found: list[np.ndarray] = []
            for file in files:
                file.seek(0)
                found.append(_find_repeated(np.frombuffer(file.read(), _ENTRY)))
        finally:
            for file in files:
                file.close()
    return np.sort(np.concatenate(found))


def _find_repeated(entries: np.ndarray) -> np.ndarray:
    """Rows of the entries whose key an earlier entry has."""
    order = np.argsort(entries["key"], kind="stable")
    keys = entries["key"][order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    rows: np.ndarray = entries["row"][order[again]]
    return rows
