"""Members of a finished dataset's samples, by row: no torch, one open file, every crc32 checked."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.manifest import COPY_AGAIN, INDEX_FILE, Manifest, index_dtype, path_inside
from pretrain.dataset.pictures_in_place import checked_pictures, read_pictures_root
from pretrain.dataset.sample_weights import read_weights

_BLOCK_ROWS = 1 << 13


class TierReader:
    """One tier of a dataset. ValueError or OSError name the file that is not as it should be."""

    def __init__(self, directory: Path, manifest: Manifest, name: str) -> None:
        self.directory = directory
        self.name = name
        self.tier = manifest.tiers[name]
        path = path_inside(directory, f"{name}/{INDEX_FILE}", "tiers")
        index = np.load(path, mmap_mode="r", allow_pickle=False)
        if index.dtype != index_dtype(len(manifest.captions)) or len(index) != manifest.samples:
            raise ValueError(f"index {path} does not go with the manifest: {COPY_AGAIN}")
        self.index: NDArray[Any] = index

    def read(self, rows: NDArray[np.int64], members: Sequence[str]) -> Iterator[list[bytes]]:
        """The wanted members of each row. Ascending rows open each shard once."""
        picked = self.index[rows]
        places = [picked[member].tolist() for member in members]
        with ExitStack() as opened:
            number = -1
            files: list[BinaryIO] = []  # of each wanted member
            for shard, *sample in zip(picked["shard"].tolist(), *places, strict=True):
                if shard != number:
                    opened.close()
                    paths = {member: self._path(shard, member) for member in members}
                    handles = {
                        path: opened.enter_context(path.open("rb")) for path in paths.values()
                    }
                    number, files = shard, [handles[paths[member]] for member in members]
                contents: list[bytes] = []
                for file, (offset, size, crc32) in zip(files, sample, strict=True):
                    file.seek(offset)
                    contents.append(file.read(size))
                    if zlib.crc32(contents[-1]) != crc32:
                        raise ValueError(
                            f"{file.name}: the member at byte {offset} is damaged: {COPY_AGAIN}"
                        )
                yield contents

    def _path(self, shard: int, member: str) -> Path:
        """The file in which a shard's members of a name lie."""
        if shard >= len(self.tier.shards):
            raise ValueError(
                f"the index of {self.directory / self.name} names shard {shard}, the manifest has "
                f"{len(self.tier.shards)}: {COPY_AGAIN}"
            )
        told = self.tier.shards[shard]
        if member == "jpg" and told.pictures is not None:
            return checked_pictures(read_pictures_root(self.directory), told.pictures)
        entry = f"tiers.{self.name}.shards.{shard}.file"
        return path_inside(self.directory, told.file, entry)


def smallest_tier(directory: Path, manifest: Manifest) -> TierReader:
    """The tier with the smallest files: what is no picture is the same in all."""

    def size(name: str) -> int:
        return manifest.tiers[name].bytes

    return TierReader(directory, manifest, min(manifest.tiers, key=size))


def sample_metadata(directory: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Metadata of every sample in order, from the tier with the smallest files."""
    reader = smallest_tier(directory, manifest)
    for rows in spaced_rows(manifest.samples, None):
        for (details,) in reader.read(rows, ("json",)):
            yield json.loads(details)["meta"]


def base_weights(directory: Path, name: str | None, manifest: Manifest) -> NDArray[np.float32]:
    """(samples,) weights of that name, which --weights asked for and others go on from; or ones."""
    if name is None:
        return np.ones(manifest.samples, "<f4")
    return read_weights(directory, name, manifest.samples, "--weights")


def spaced_rows(samples: int, wanted: int | None) -> Iterator[NDArray[np.int64]]:
    """Ascending rows, all of them or so many at equal distances, in blocks of bounded size."""
    count = samples if wanted is None else min(wanted, samples)
    for first in range(0, count, _BLOCK_ROWS):
        places = np.arange(first, min(first + _BLOCK_ROWS, count), dtype=np.int64)
        yield (2 * places + 1) * samples // (2 * count)
