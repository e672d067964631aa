"""A tier's index: mapped, and everything that it can say wrong found before training."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256
from pretrain.dataset.manifest import (
    COPY_AGAIN,
    MEMBERS,
    TAR_BLOCK,
    Manifest,
    index_dtype,
)

# Checking costs every rank 0.3 to 0.9 s a million rows (100 MB), most of it the sha256. Up to this
# size all of an index is checked, its sha256 included; of a larger one as many bytes of rows, in
# blocks from the first to the last.
CHECKED_BYTES = 256 << 20
_BLOCK_ROWS = 1 << 15  # checked at once: a few MB of temporaries


def open_index(path: Path, manifest: Manifest, tier: str) -> NDArray[Any]:
    """The index of a tier, read-only and mapped: (samples,) of index_dtype.

    ValueError names the file and its fault. Checked are the file's size, sha256, and of every row
    the key, the shard's number, the place of every member and the token counts; above
    CHECKED_BYTES evenly spaced blocks of rows, and not the sha256.
    """
    if not path.is_file():
        raise FileNotFoundError(f"index {path} is missing: {COPY_AGAIN}")
    expected = index_dtype(len(manifest.captions))
    try:
        index = read_array(path)
    except ValueError as error:
        raise ValueError(f"index {path} is {error}; {COPY_AGAIN}") from error
    if index.dtype != expected or index.shape != (manifest.samples,):
        raise ValueError(
            f"index {path} holds {index.shape} rows of {index.dtype.itemsize} bytes, the manifest "
            f"says ({manifest.samples},) of {expected.itemsize}: {COPY_AGAIN}"
        )
    for first, block in _blocks(index):
        fault = _fault(first, block, manifest, tier)
        if fault is not None:
            raise ValueError(f"index {path}, {fault}: {COPY_AGAIN}")
    # Last: where a row is wrong, its number says more than two different hashes.
    wanted = manifest.tiers[tier].index_sha256
    if index.nbytes <= CHECKED_BYTES and (found := file_sha256(path)) != wanted:
        raise ValueError(
            f"index {path} has sha256 {found[:12]}…, the manifest says {wanted[:12]}…: {COPY_AGAIN}"
        )
    return index


def _blocks(index: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first row, rows) of the blocks to check: all of them, or evenly spaced ones."""
    count = -(-len(index) // _BLOCK_ROWS)
    wanted = min(count, max(CHECKED_BYTES // (_BLOCK_ROWS * index.dtype.itemsize), 2))
    for number in np.linspace(0, count - 1, wanted).round().astype(np.int64).tolist():
        first = number * _BLOCK_ROWS
        yield first, index[first : first + _BLOCK_ROWS]


def _fault(first: int, rows: NDArray[Any], manifest: Manifest, tier: str) -> str | None:
    """The first fault of these rows, which begin at row `first`, with its row; None if sound."""
    own, texts = manifest.tiers[tier].shards, manifest.tiers[manifest.text_tier].shards
    ends = np.cumsum([one.samples for one in own])
    shard = np.searchsorted(ends, np.arange(first, first + len(rows)), side="right")
    text_bytes = np.asarray([one.bytes for one in texts], np.uint64)[shard]
    picture_bytes = np.asarray([one.picture_bytes for one in own], np.uint64)[shard]
    sizes = {m: rows[m]["size"].astype(np.uint64) for m in MEMBERS}
    offsets = {m: rows[m]["offset"] for m in MEMBERS}
    tokens = rows["tokens"].sum(1, dtype=np.uint64)
    checks = {
        "key is not lower-case hex": _are_hex(rows["key"]),
        "shard is not the one that the manifest counts it to": rows["shard"] == shard,
    }
    for member in MEMBERS:  # offset + size could overflow
        shard_bytes = picture_bytes if member == "jpg" else text_bytes
        checks[f"{member} lies outside its shard file"] = (sizes[member] <= shard_bytes) & (
            offsets[member] <= shard_bytes - np.minimum(sizes[member], shard_bytes)
        )
    block = np.uint64(TAR_BLOCK)
    together = MEMBERS if tier == manifest.text_tier and own[0].pictures is None else MEMBERS[1:]
    for one, following in itertools.pairwise(together):
        padded = (offsets[one] + sizes[one] + block - np.uint64(1)) // block * block
        checks[f"{following} does not follow {one}"] = offsets[following] == padded + block
    id_bytes = np.uint64(np.dtype(manifest.token_dtype).itemsize)
    checks["ids have another size than tokens says"] = tokens * id_bytes == sizes["ids"]
    checks["pos has another size than tokens says"] = tokens == sizes["pos"]
    for fault, sound in checks.items():
        if not sound.all():
            row = int(np.argmin(sound))
            return f"row {first + row}: {fault}"
    return None


def _are_hex(keys: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether each key is lower-case hex digits throughout."""
    digit = np.zeros(256, bool)
    digit[np.frombuffer(b"0123456789abcdef", np.uint8)] = True
    letters = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1)
    return np.asarray(digit[letters].all(axis=1))
