"""Reading a dataset directory: one indexed, checked read per sample."""

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.shard_format import INDEX_FILE, Manifest, index_dtype, read_manifest
from pretrain.tokens.tokenizer import Tokenizer


class SampleError(Exception):
    """One sample cannot be used; `reason` is the name under which it is counted."""

    def __init__(self, reason: str, key: str, detail: str) -> None:
        super().__init__(f"sample {key}: {reason} ({detail})")
        self.reason = reason
        self.key = key


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What training reads of one sample."""

    jpeg: bytes
    ids: NDArray[np.integer]  # all captions, concatenated
    classes: NDArray[np.uint8]  # word class of each id


class Dataset:
    """One image tier of a dataset directory, read by row.

    Checks at the start that the manifest, the index and the shard files agree in names, counts
    and sizes; every member read is checked against its crc32.
    """

    def __init__(self, directory: Path, tier: str) -> None:
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        if tier not in self.manifest.tiers:
            raise ValueError(
                f"image tier {tier!r} asked for, {directory} has {sorted(self.manifest.tiers)}: "
                "change data.tier, or rebuild with `data_prep build --tiers …`"
            )
        self.tier = tier
        self.token_dtype = np.dtype(self.manifest.token_dtype)
        self.index = self._open_index()
        self.shards = [directory / shard.file for shard in self.manifest.tiers[tier].shards]
        for shard, path in zip(self.manifest.tiers[tier].shards, self.shards, strict=True):
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                raise ValueError(
                    f"shard {path} has {found} bytes, the manifest says {shard.bytes}: it is "
                    "missing or damaged; copy it again or rebuild the dataset"
                )
        self._descriptors: dict[int, int] = {}

    def _open_index(self) -> NDArray[Any]:
        path = self.directory / self.tier / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(f"index {path} is missing: rebuild the dataset")
        index = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = index_dtype(len(self.manifest.captions))
        if index.dtype != expected or len(index) != self.manifest.samples:
            raise ValueError(
                f"index {path} holds {len(index)} rows of {index.dtype.itemsize} bytes, the "
                f"manifest says {self.manifest.samples} of {expected.itemsize}: rebuild the dataset"
            )
        return index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        """sha256 over the manifest: equal only for the same samples, tiers and tokenizer."""
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids; ValueError where the file is not the recorded one."""
        tokenizer = Tokenizer(self.directory / self.manifest.tokenizer.file)
        if tokenizer.sha256 != self.manifest.tokenizer.sha256:
            raise ValueError(
                f"tokenizer {tokenizer.file} has sha256 {tokenizer.sha256[:12]}…, the manifest "
                f"says {self.manifest.tokenizer.sha256[:12]}…: put the dataset's own file back"
            )
        return tokenizer

    def read(self, row: int) -> Sample:
        """Picture, ids and word classes of a row by one read. SampleError on damage."""
        entry = self.index[row]
        start = int(entry["jpg"]["offset"])
        end = int(entry["pos"]["offset"]) + int(entry["pos"]["size"])
        block = self._pread(int(entry["shard"]), start, end - start)
        jpeg, ids, classes = (
            self._member(block, entry, name, start) for name in ("jpg", "ids", "pos")
        )
        return Sample(
            jpeg=jpeg,
            ids=np.frombuffer(ids, self.token_dtype),
            classes=np.frombuffer(classes, np.uint8),
        )

    def read_json(self, row: int) -> dict[str, Any]:
        """The sample's json member: captions, token counts, metadata."""
        entry = self.index[row]
        start, size = int(entry["json"]["offset"]), int(entry["json"]["size"])
        block = self._pread(int(entry["shard"]), start, size)
        return json.loads(self._member(block, entry, "json", start))

    def key(self, row: int) -> str:
        return self.index[row]["key"].decode("ascii")

    def _member(self, block: bytes, entry: Any, name: str, start: int) -> bytes:
        offset = int(entry[name]["offset"]) - start
        member = block[offset : offset + int(entry[name]["size"])]
        if zlib.crc32(member) != int(entry[name]["crc32"]):
            raise SampleError("crc_mismatch", entry["key"].decode("ascii"), f"member {name}")
        return member

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return os.pread(self._descriptors[shard], size, offset)

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
