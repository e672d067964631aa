"""Samples to tar shards and offset indices, each written aside and read back."""

import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.build.ustar import encode_header, end_of_archive, padding
from data_prep.store import Store
from pretrain.base.checks import check_local
from pretrain.base.files import aside, file_sha256, final_name, write_durably
from pretrain.dataset.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    MEMBERS,
    Manifest,
    PicturesInfo,
    ShardInfo,
    index_dtype,
    members_inside,
)
from pretrain.dataset.tars import read_plain


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """Where and how shards are written"""

    out: str
    """Dataset directory to make: a folder, or an address on an object store (s3://BUCKET/FOLDER)."""
    work: Path | None = None
    """Folder on this machine's disk, for a dataset on an object store: shards lie there until they
    are sent, and what is small. Of many machines each has its own."""
    overwrite: bool = False
    """Replace the dataset that `out` holds, finished or not; otherwise it is refused, unless these
    options made it."""
    shard_samples: int = 10_000
    """Most samples in a shard. As many rows are one task, so that fewer make use of more workers
    in a small corpus."""
    shard_bytes: int = 1 << 30
    """A shard is closed once it holds this many bytes; all tiers then begin a new one."""

    def __post_init__(self) -> None:
        is_far = "://" in self.out
        if is_far and re.match(r"(https?|hf)://", self.out):
            raise ValueError(
                f"--out={self.out}: a dataset is made in a folder, or on an object store (s3://, "
                "gs://, …); choose another --out"
            )
        if is_far != (self.work is not None):
            raise ValueError(
                f"--out={self.out}, --work={self.work}: a dataset on an object store needs a "
                "folder on this machine's disk: give both, or a folder as --out alone"
            )
        check_local({"--work": self.work})
        if self.shard_samples < 1 or self.shard_bytes < 1:
            raise ValueError(
                f"shard_samples={self.shard_samples}, shard_bytes={self.shard_bytes}: "
                "choose 1 or more"
            )

    @property
    def folder(self) -> Path:
        """Where the dataset, or what is small of it, is made on this machine."""
        return self.work or Path(self.out)

    @property
    def store(self) -> Store | None:
        """Where the dataset is to lie, if not on this machine."""
        if self.work is None:
            return None
        return Store(address=self.out.rstrip("/"), folder=self.work)


Place = tuple[int, int, int]  # offset, size, crc32 of a member's content


@dataclass(frozen=True, kw_only=True)
class NewSample:
    """A finished sample: everything but the picture is the same in all tiers."""

    key: str
    pictures: dict[str, bytes]  # tier -> JPEG
    stored: Place | None  # of the one picture in its tar, where it stays there
    tokens: list[int]  # per caption of the dataset, 0 where the sample lacks it
    ids: bytes
    word_classes: bytes
    text: str
    details: dict[str, Any]  # the json member


class Shard:
    """One tar file in the making, to be read back before it takes its name."""

    def __init__(
        self, file: BinaryIO, pictures: PicturesInfo | None = None, is_text_tier: bool = True
    ) -> None:
        """file: new and empty. pictures: the tar in which they stay."""
        self.pictures = pictures
        self.members = members_inside(pictures, is_text_tier)
        self.file = file
        self.bytes = 0
        self.rows: list[tuple[Any, ...]] = []  # as index_dtype has them

    def add(
        self,
        key: str,
        members: dict[str, bytes],
        tokens: list[int],
        elsewhere: dict[str, Place],
    ) -> dict[str, Place]:
        """Append one sample; returns where its members lie. `elsewhere`: those in other files."""
        places = dict(elsewhere)
        for member in self.members:
            content = members[member]
            header = encode_header(f"{key}.{member}", len(content))
            places[member] = (self.bytes + len(header), len(content), zlib.crc32(content))
            self.write(header + content + padding(len(content)))
        self.rows.append((key.encode(), 0, *(places[member] for member in MEMBERS), tokens))
        return places

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.bytes += len(data)

    def finish(self, name: str) -> ShardInfo:
        """Close, sync, read back. OSError if what was read is not what was written."""
        self.write(end_of_archive(self.bytes))
        self.file.flush()
        os.fsync(self.file.fileno())
        # Drop the cached pages, so that the check below reads the disk.
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.file.close()
        verify_shard(Path(self.file.name), self.rows, self.members)
        return ShardInfo(
            file=name,
            samples=len(self.rows),
            bytes=self.bytes,
            sha256=file_sha256(Path(self.file.name)),
            pictures=self.pictures,
        )


def verify_shard(path: Path, rows: list[tuple[Any, ...]], members: Sequence[str] = MEMBERS) -> None:
    """Every member of every row is where the index says, whole, and nothing else is there.

    members: those that the shard itself holds.
    OSError otherwise, with the first place where they part.
    """
    expected = (
        (f"{key.decode()}.{member}", *place)
        for key, _, *places, _ in rows
        for member, place in zip(MEMBERS, places, strict=True)
        if member in members
    )
    found = (
        (name, offset, len(content), zlib.crc32(content))
        for name, offset, content in read_plain(path)
    )
    for wanted, seen in zip_longest(expected, found):
        if wanted != seen:
            raise OSError(
                f"{path} was not read back as written: (name, offset, bytes, crc32) {wanted} "
                f"expected, {seen} found; check the disk and build again"
            )


COUNTS = "counts"  # stands in a part's files where others name a tier


class PartWriter(ExitStack):
    """One shard of each tier, with the same samples in the same order, their index rows, and how
    often each token id occurs.

    Files are FOLDER/STEM.TIER.tar and .npy, and STEM.counts.npy (each id that occurs, and its
    count); the rows' shard number
    is for the joining to set. A context: what is not finished when it ends is removed.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        tiers: list[str],
        caption_count: int,
        ids: np.dtype[Any],
        pictures: PicturesInfo | None = None,
    ) -> None:
        """tiers: the first holds the texts. ids: type of a token id in the member `ids`. pictures:
        the tar in which they stay."""
        super().__init__()
        self.folder = folder
        self.stem = stem
        self.tiers = tiers
        self.dtype = index_dtype(caption_count)
        self.ids = ids
        self.pictures = pictures
        self._ids: list[np.ndarray] = []  # of each sample
        self.shards: dict[str, Shard] = {}

    def add(
        self,
        key: str,
        pictures: dict[str, bytes],
        texts: dict[str, bytes],
        tokens: list[int],
        stored: Place | None = None,
    ) -> None:
        """Append a sample: its picture to every tier, its other members to the first.

        pictures: by tier. stored: the place of the one picture in its tar, where it stays there.
        """
        if not self.shards:
            self.shards = {
                tier: Shard(
                    self.enter_context(aside(self.path(tier, "tar"))),
                    self.pictures,
                    is_text_tier=tier == self.tiers[0],
                )
                for tier in self.tiers
            }
        places = {} if stored is None else {"jpg": stored}
        for tier, shard in self.shards.items():
            own = texts if stored is not None else {**texts, "jpg": pictures[tier]}
            places = shard.add(key, own, tokens, places)
        self._ids.append(np.frombuffer(texts["ids"], self.ids))

    def path(self, tier: str, kind: str) -> Path:
        """One of the part's files."""
        return self.folder / f"{self.stem}.{tier}.{kind}"

    @property
    def samples(self) -> int:
        return max((len(shard.rows) for shard in self.shards.values()), default=0)

    @property
    def bytes(self) -> int:
        """Of all tiers."""
        return sum(shard.bytes for shard in self.shards.values())

    def is_full(self, options: WriterOptions) -> bool:
        """Whether any tier is. All tiers roll over together: a sample's shard number is the same
        in each, and so is any order made of shard numbers."""
        return self.samples >= options.shard_samples or any(
            shard.bytes >= options.shard_bytes for shard in self.shards.values()
        )

    def finish(self) -> dict[str, ShardInfo]:
        """Close the shards and write the index rows; nothing if there is no sample."""
        infos: dict[str, ShardInfo] = {}
        for tier, shard in self.shards.items():
            infos[tier] = shard.finish(self.path(tier, "tar").name)
            rows = np.array(shard.rows, dtype=self.dtype)
            write_durably(self.path(tier, "npy"), array_file(rows))
        if infos:
            counts = np.stack(np.unique(np.concatenate(self._ids), return_counts=True))
            write_durably(self.path(COUNTS, "npy"), array_file(counts.astype("<u4")))
        self.close()  # gives the shards their names
        return infos


def array_file(array: np.ndarray) -> bytes:
    """A .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def text_members(sample: NewSample) -> dict[str, bytes]:
    """All members but the picture, by name."""
    return {
        "ids": sample.ids,
        "pos": sample.word_classes,
        "txt": sample.text.encode(),
        "json": json.dumps(sample.details, ensure_ascii=False).encode(),
    }


def write_index(path: Path, dtype: np.dtype[Any], rows: int, blocks: Iterable[np.ndarray]) -> str:
    """Write an index of so many rows as np.save would, block by block; returns its sha256."""
    digest = hashlib.sha256()
    with aside(path) as file:
        header = io.BytesIO()
        description = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (rows,),
        }
        np.lib.format.write_array_header_1_0(header, description)
        written = 0
        for content in chain([header.getvalue()], (block.tobytes() for block in blocks)):
            file.write(content)
            digest.update(content)
            written += len(content)
        if written != len(header.getvalue()) + rows * dtype.itemsize:
            raise OSError(f"{path}: {written} bytes for {rows} rows: a record of a part is wrong")
    return digest.hexdigest()


def remove_shards(folder: Path) -> None:
    """Delete the shards and the index of a tier's folder, and the folder if it is empty then."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.fullmatch(rf"\d{{5,}}\.tar|{re.escape(INDEX_FILE)}", final_name(path.name)):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def write_manifest(out: Path, manifest: Manifest) -> None:
    """The last file: with it, the directory is a dataset."""
    write_durably(out / MANIFEST_FILE, manifest.to_json().encode())
