"""Reading a dataset directory: one indexed, checked read per sample and file."""

import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.index import open_index
from pretrain.dataset.manifest import (
    COPY_AGAIN,
    INDEX_FILE,
    MANIFEST_FILE,
    ROW_HEAD,
    Manifest,
    TierInfo,
    path_inside,
    read_manifest,
)
from pretrain.dataset.pictures_in_place import find_pictures
from pretrain.dataset.shards import SHARD_READER, ShardOptions, find_shards, open_copies
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer
from pretrain.tokens.vocabulary import Vocabulary


class SampleError(ValueError):
    """One sample cannot be used; `reason` is the name under which it is counted."""

    def __init__(self, reason: str, key: str, detail: str) -> None:
        super().__init__(f"sample {key}: {reason} ({detail})")
        self.reason = reason
        self.key = key
        self._detail = detail

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str, str]]:
        """It travels between processes."""
        return type(self), (self.reason, self.key, self._detail)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What training reads of one sample."""

    jpeg: bytes  # of a tier in place maybe a picture file of another format
    ids: NDArray[np.integer]  # all captions, concatenated
    classes: NDArray[np.uint8]  # word class of each id


def check_tier(manifest: Manifest, tier: str, directory: Path, option: str) -> None:
    """ValueError, naming the option that asked, where a dataset lacks an image tier."""
    if tier not in manifest.tiers:
        raise ValueError(
            f"{option}={tier!r} asked for, {directory} has image tiers {sorted(manifest.tiers)}: "
            f"change {option}, or rebuild with `python -m data_prep build --tiers …`"
        )


class Dataset:
    """One image tier of a dataset directory, with the texts, read by row. Its reads may run in many
    threads.

    Checks at the start that the manifest, the index and the shard files agree in names, counts
    and sizes (a look at every shard file, and `open_index`); every member read is checked against
    its crc32. `option` is what asked for the tier, for error messages. Shards that come through a
    cache are checked whole, by size and sha256, when they come.
    """

    def __init__(
        self,
        directory: Path,
        tier: str,
        option: str = "data.tier",
        shards: ShardOptions | None = None,
        looks: bool = True,
    ) -> None:
        """looks: whether this process looks at every shard file; of many ranks on a node one is
        enough, and 40,000 files on a network disk take a while."""
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        check_tier(self.manifest, tier, directory, option)
        self.tier = tier
        self.in_place = self.manifest.tiers[tier].in_place
        self.token_dtype = np.dtype(self.manifest.token_dtype)
        self._copies = open_copies(shards or ShardOptions(), directory, self.manifest, tier)

        def find(name: str) -> list[str]:
            if self._copies is not None:  # whole when they come
                return self._copies.paths[name]
            return find_shards(directory, self.manifest, name, looks)

        # Of each shard's samples, the file of the pictures, and that of all the rest.
        self.shards = find(self.manifest.text_tier)
        if self.in_place:
            self.pictures = find_pictures(directory, self.manifest.tiers[tier], looks)
        else:
            self.pictures = self.shards if tier == self.manifest.text_tier else find(tier)
        self._is_apart = self.pictures is not self.shards
        self.close()  # files still open under these names may be those of a dataset built before
        path = path_inside(directory, f"{tier}/{INDEX_FILE}", "tiers")
        if shards is not None and shards.url is not None and not path.exists():
            raise FileNotFoundError(
                f"{option}={tier}: {path} was not brought: `python -m data_prep fetch {directory} "
                f"--url {shards.url} --tiers {tier}` brings it"
            )
        self.index = open_index(path, self.manifest, tier)
        self._shard_ends = np.cumsum([s.samples for s in self.manifest.tiers[tier].shards])
        # The same rows as plain bytes: taking one apart costs a tenth of NumPy's field access.
        self._rows = self.index.view(np.uint8).data

    def __getstate__(self) -> dict[str, Any]:
        """What a loader process gets: all of it was checked here."""
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._rows = self.index.view(np.uint8).data

    def __len__(self) -> int:
        return len(self.index)

    @property
    def tiers_read(self) -> list[TierInfo]:
        """The image tier, and the one that holds the texts where it is another."""
        return [
            tier
            for name, tier in self.manifest.tiers.items()
            if name in (self.tier, self.manifest.text_tier)
        ]

    @property
    def cache_bytes(self) -> int | None:
        """How much the copies on the node's own disk may take; None without a cache."""
        return None if self._copies is None else self._copies.limit_bytes

    @property
    def fingerprint(self) -> str:
        """sha256 over the manifest: equal only for the same samples, tiers and tokenizer."""
        return self.manifest.fingerprint

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer that made the ids."""
        told = self.manifest.tokenizer
        return Vocabulary(
            size=told.vocab_size, pad_id=told.pad_id, bos_id=told.bos_id, eos_id=told.eos_id
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids; ValueError where the file is not the recorded one."""
        recorded = self.manifest.tokenizer
        tokenizer = open_tokenizer(path_inside(self.directory, recorded.file, "tokenizer.file"))
        if tokenizer.sha256 != recorded.sha256:
            raise ValueError(
                f"tokenizer {tokenizer.file} has sha256 {tokenizer.sha256[:12]}…, the manifest "
                f"says {recorded.sha256[:12]}…: put the dataset's own file back"
            )
        if tokenizer.vocabulary != self.vocabulary:
            raise ValueError(
                f"{self.directory / MANIFEST_FILE}: tokenizer has {self.vocabulary}, its file "
                f"{tokenizer.vocabulary}; {COPY_AGAIN}"
            )
        return tokenizer

    def read(self, row: int) -> Sample:
        """Picture, ids and word classes of a row: by one read of the text tier, by two where the
        picture lies in another file. SampleError on damage."""
        _, shard, *members = ROW_HEAD.unpack_from(self._rows, row * self.index.itemsize)
        start, jpg_bytes, jpg_crc, ids_at, ids_bytes, ids_crc, pos_at, pos_bytes, pos_crc = members
        if self._is_apart:
            jpeg = self._read(row, shard, start, start + jpg_bytes, of_picture=True)
            start = ids_at
            block = self._read(row, shard, start, pos_at + pos_bytes)
        else:
            block = self._read(row, shard, start, pos_at + pos_bytes)
            jpeg = block[:jpg_bytes]
        ids = block[ids_at - start : ids_at - start + ids_bytes]
        classes = block[pos_at - start :]
        for name, member, crc in (
            ("jpg", jpeg, jpg_crc),
            ("ids", ids, ids_crc),
            ("pos", classes, pos_crc),
        ):
            if zlib.crc32(member) != crc:
                raise SampleError("crc_mismatch", self.key(row), f"member {name}")
        if ids_bytes != pos_bytes * self.token_dtype.itemsize:
            detail = f"{ids_bytes} bytes of ids, {pos_bytes} word classes"
            raise SampleError("ids_invalid", self.key(row), detail)
        return Sample(
            jpeg=jpeg,
            ids=np.frombuffer(ids, self.token_dtype),
            classes=np.frombuffer(classes, np.uint8),
        )

    def read_text(self, row: int) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
        """(ids, word classes) of all captions of a row. SampleError where the ids are not of this
        vocabulary."""
        sample, vocab_size = self.read(row), self.manifest.tokenizer.vocab_size
        ids = sample.ids
        if len(ids) != self.index["tokens"][row].sum() or ids.max(initial=0) >= vocab_size:
            raise SampleError("ids_invalid", self.key(row), f"vocabulary of {vocab_size}")
        return ids, sample.classes

    def read_ids(self, row: int) -> NDArray[np.integer]:
        """Ids of all captions of a row, as `read_text`."""
        return self.read_text(row)[0]

    def check_ids(self, rows: int = 256) -> None:
        """ValueError, with the shard's name, where ids of some evenly spaced rows are not of the
        manifest's vocabulary: a writer that is wrong is wrong everywhere. Damaged rows are passed
        over here: training replaces and counts them. Of shards that come through a cache the first
        alone is looked at."""
        samples = len(self) if self._copies is None else int(self._shard_ends[0])
        step = max(1, samples // rows)
        for row in range(0, samples, step):
            try:
                self.read_ids(row)
            except SampleError as error:
                if error.reason == "ids_invalid":
                    shard = self.shards[int(self.index[row]["shard"])]
                    raise ValueError(
                        f"{shard}: {error}: it was tokenized by another tokenizer than the "
                        "manifest says; build the dataset again"
                    ) from error

    def read_json(self, row: int) -> dict[str, Any]:
        """The sample's json member: captions, token counts, metadata. SampleError on damage."""
        entry = self.index[row]
        start, size, crc = entry["json"].item()
        block = self._read(row, int(entry["shard"]), start, start + size)
        if zlib.crc32(block) != crc:
            raise SampleError("crc_mismatch", self.key(row), "member json")
        return json.loads(block)

    def members(self, rows: NDArray[np.int64], names: Sequence[str]) -> Iterator[list[bytes]]:
        """Members of each row by their names (`jpg`, `ids`, …). SampleError names a damaged one."""
        picked = self.index[rows]
        places = [picked[name].tolist() for name in names]
        for row, shard, *sample in zip(
            rows.tolist(), picked["shard"].tolist(), *places, strict=True
        ):
            contents: list[bytes] = []
            for name, (start, size, crc) in zip(names, sample, strict=True):
                is_picture = name == "jpg"
                contents.append(self._read(row, shard, start, start + size, is_picture))
                if zlib.crc32(contents[-1]) != crc:
                    path = (self.pictures if is_picture else self.shards)[shard]
                    detail = f"member {name} at byte {start} of {path}; {COPY_AGAIN}"
                    raise SampleError("crc_mismatch", self.key(row), detail)
            yield contents

    def key(self, row: int) -> str:
        return self.index[row]["key"].decode("ascii", "backslashreplace")

    def _read(self, row: int, shard: int, start: int, end: int, of_picture: bool = False) -> bytes:
        """Bytes of a shard. A place outside it, in an index too large to check whole, is the
        sample's fault; an I/O error or a file cut since the start never is."""
        shards = self.manifest.tiers[self.tier if of_picture else self.manifest.text_tier].shards
        size = -1
        if shard < len(shards):
            size = shards[shard].picture_bytes if of_picture else shards[shard].bytes
        if not start <= end <= size:
            raise SampleError("index_invalid", self.key(row), f"shard {shard}, bytes {start}-{end}")
        path = (self.pictures if of_picture else self.shards)[shard]
        if self._copies is None:
            return SHARD_READER.read(path, start, end - start)
        self._copies.use(path)
        return SHARD_READER.read(path, start, end - start, partial(self._copies.bring, path))

    def shards_of(self, first: int, stop: int) -> range:
        """Numbers of the shards that hold rows first…stop."""
        ends = self._shard_ends
        begin = int(np.searchsorted(ends, first, side="right"))
        return range(begin, int(np.searchsorted(ends, stop - 1, side="right")) + 1)

    def read_ahead(self, first: int, stop: int, given_up: threading.Event) -> None:
        """Have rows first…stop at hand soon: their shards in the cache, their bytes in memory.

        OSError where that cannot be; reading them will say more. Ends soon where it is given up.
        """
        for shard in self.shards_of(first, stop):
            last = min(stop, int(self._shard_ends[shard])) - 1
            wanted = [(self.shards[shard], "jpg", "pos")]
            if self._is_apart:
                wanted = [(self.pictures[shard], "jpg", "jpg"), (self.shards[shard], "ids", "pos")]
            for path, begin, end in wanted:
                bring = None
                if self._copies is not None:
                    self._copies.use(path)
                    bring = partial(self._copies.bring, path, given_up)
                start, final = int(self.index[first][begin]["offset"]), self.index[last][end]
                size = int(final["offset"]) + int(final["size"]) - start
                SHARD_READER.read_ahead(path, start, size, bring)
            first = last + 1

    def close(self) -> None:
        """Close the shard files; a later read opens them again."""
        SHARD_READER.forget({*self.shards, *self.pictures})
