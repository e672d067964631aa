"""Samples to a dataset directory: tar shards, offset indices, the manifest last."""

import hashlib
import io
import json
import os
import re
import zlib
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.pictures import Tier
from data_prep.ustar import encode_header, end_of_archive, padding, read_members
from pretrain.files import aside, file_sha256, rename_durably, write_durably
from pretrain.shard_format import (
    INDEX_FILE,
    MANIFEST_FILE,
    MEMBERS,
    SHARD_FILE,
    Manifest,
    ShardInfo,
    TierInfo,
    index_dtype,
)


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """Where and how shards are written"""

    out: Path
    """Dataset directory to make."""
    overwrite: bool = False
    """Replace the dataset that `out` holds; otherwise it is refused."""
    shard_samples: int = 10_000
    """Most samples in a shard."""
    shard_bytes: int = 1 << 30
    """A shard is closed once it holds this many bytes; all tiers then begin a new one."""

    def __post_init__(self) -> None:
        if self.shard_samples < 1 or self.shard_bytes < 1:
            raise ValueError(
                f"shard_samples={self.shard_samples}, shard_bytes={self.shard_bytes}: "
                "choose 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A finished sample: everything but the picture is the same in all tiers."""

    key: str
    pictures: dict[str, bytes]  # tier -> JPEG
    tokens: list[int]  # per caption of the dataset, 0 where the sample lacks it
    ids: bytes
    word_classes: bytes
    text: str
    details: dict[str, Any]  # the json member


class Shard:
    """One tar file in the making. It takes its final name once it was read back without fault."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.part = aside(path)
        self.number = number
        self.file: BinaryIO = self.part.open("wb")
        self.bytes = 0
        self.rows: list[tuple[Any, ...]] = []  # as index_dtype has them

    def add(self, key: str, members: dict[str, bytes], tokens: list[int]) -> None:
        """Append one sample and remember where its members lie."""
        places: list[tuple[int, int, int]] = []
        for member in MEMBERS:
            content = members[member]
            header = encode_header(f"{key}.{member}", len(content))
            places.append((self.bytes + len(header), len(content), zlib.crc32(content)))
            self.write(header + content + padding(len(content)))
        self.rows.append((key.encode(), self.number, *places, tokens))

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.bytes += len(data)

    def finish(self, name: str) -> ShardInfo:
        """Close, sync, read back, name. OSError if what was read is not what was written."""
        self.write(end_of_archive(self.bytes))
        self.file.flush()
        os.fsync(self.file.fileno())
        # Drop the cached pages, so that the check below reads the disk.
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.file.close()
        verify_shard(self.part, self.rows)
        digest = file_sha256(self.part)
        rename_durably(self.part, self.path)
        return ShardInfo(file=name, samples=len(self.rows), bytes=self.bytes, sha256=digest)


def verify_shard(path: Path, rows: list[tuple[Any, ...]]) -> None:
    """Every member of every row is where the index says, whole, and nothing else is there.

    OSError otherwise, with the first place where they part.
    """
    expected = (
        (f"{key.decode()}.{member}", *place)
        for key, _, *places, _ in rows
        for member, place in zip(MEMBERS, places, strict=True)
    )
    found = (
        (name, offset, len(content), zlib.crc32(content))
        for name, offset, content in read_members(path)
    )
    for wanted, seen in zip_longest(expected, found):
        if wanted != seen:
            raise OSError(
                f"{path} was not read back as written: (name, offset, bytes, crc32) {wanted} "
                f"expected, {seen} found; check the disk and build again"
            )


class DatasetWriter:
    """Writes the shards and indices of all tiers, with the same samples in the same order.

    Opening it with `overwrite` unset on a finished dataset raises FileExistsError. Until the
    manifest is written, the directory is not a dataset.
    """

    def __init__(self, options: WriterOptions, tiers: list[Tier], caption_count: int) -> None:
        self.options = options
        self.tiers = tiers
        self.dtype = index_dtype(caption_count)
        clear_out(options)
        for tier in tiers:
            (options.out / tier.name).mkdir(parents=True, exist_ok=True)
            remove_shards(options.out / tier.name)
        self.open_shards: dict[str, Shard] = {}
        self.shard_count = 0
        self.infos: dict[str, list[ShardInfo]] = {tier.name: [] for tier in tiers}
        self.rows: dict[str, list[np.ndarray]] = {tier.name: [] for tier in tiers}

    def add(self, sample: Sample) -> None:
        """Append a sample to every tier, beginning new shards where the last ones are full."""
        if not self.open_shards:
            for tier in self.tiers:
                path = self.options.out / tier.name / SHARD_FILE.format(shard=self.shard_count)
                self.open_shards[tier.name] = Shard(path, self.shard_count)
        members = {
            "ids": sample.ids,
            "pos": sample.word_classes,
            "txt": sample.text.encode(),
            "json": json.dumps(sample.details, ensure_ascii=False).encode(),
        }
        for name, shard in self.open_shards.items():
            shard.add(sample.key, {**members, "jpg": sample.pictures[name]}, sample.tokens)
        # All tiers roll over together: a sample's shard number is the same in each, and so is
        # any order made of shard numbers.
        if any(
            len(shard.rows) >= self.options.shard_samples or shard.bytes >= self.options.shard_bytes
            for shard in self.open_shards.values()
        ):
            self.finish_shards()

    def finish_shards(self) -> None:
        """Close the open shards; the next sample begins new ones."""
        for name, shard in self.open_shards.items():
            self.infos[name].append(shard.finish(f"{name}/{shard.path.name}"))
            self.rows[name].append(np.array(shard.rows, dtype=self.dtype))
        self.open_shards = {}
        self.shard_count += 1

    def finish(self) -> tuple[dict[str, TierInfo], np.ndarray]:
        """Close all shards and write the indices: (tiers for the manifest, tokens (S, captions)).

        The caller has added at least one sample.
        """
        if self.open_shards:
            self.finish_shards()
        infos: dict[str, TierInfo] = {}
        rows = np.empty(0, dtype=self.dtype)
        for tier in self.tiers:
            rows = np.concatenate(self.rows[tier.name])
            buffer = io.BytesIO()
            np.save(buffer, rows, allow_pickle=False)
            index = buffer.getvalue()
            write_durably(self.options.out / tier.name / INDEX_FILE, index)
            infos[tier.name] = TierInfo(
                shortest_px=tier.shortest_px,
                jpeg_quality=tier.jpeg_quality,
                shards=self.infos[tier.name],
                index_sha256=hashlib.sha256(index).hexdigest(),
            )
        return infos, rows["tokens"]


def refuse_finished(options: WriterOptions) -> None:
    """FileExistsError if `out` is a file, or a dataset that `overwrite` does not give up."""
    if options.out.exists() and not options.out.is_dir():
        raise FileExistsError(f"out={options.out} is a file; choose another --out")
    if (options.out / MANIFEST_FILE).exists() and not options.overwrite:
        raise FileExistsError(
            f"out={options.out} already holds a dataset; choose another --out or add --overwrite"
        )


def clear_out(options: WriterOptions) -> None:
    """Make `out` ready for a new dataset: no manifest, none of the shards that one listed."""
    refuse_finished(options)
    path = options.out / MANIFEST_FILE
    if not path.exists():
        return
    tiers = json.loads(path.read_text(encoding="utf-8")).get("tiers", {})
    path.unlink()  # first, so that an interrupted build never leaves a manifest without its shards
    for name in tiers:
        remove_shards(options.out / Path(name).name)


def remove_shards(folder: Path) -> None:
    """Delete the shards and the index of a tier's folder, nothing else."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == INDEX_FILE or re.fullmatch(r"\d{5,}\.tar(\.part)?", path.name):
            path.unlink()


def write_manifest(out: Path, manifest: Manifest) -> None:
    """The last file: with it, the directory is a dataset."""
    write_durably(out / MANIFEST_FILE, manifest.to_json().encode())
