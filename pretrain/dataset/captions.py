"""Captions that came later: DIR/captions/NAME beside a finished dataset's shards. No torch.

ids.bin             token ids of all texts, one after the other, of the manifest's token_dtype
pos.bin             one byte an id: its word class, as in the shards
index.npy           one row a sample: where its ids begin, how many they are, a crc32
token_counts.npy    how often each id occurs in them, uint64
recaption.json      what they were made of, and every file's size and sha256; written last
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256
from pretrain.dataset.manifest import (
    RECAPTIONS_FOLDER,
    Manifest,
    read_token_counts,
    recaption_folder,
)
from pretrain.dataset.shards import SHARD_READER

INFO_FILE = "recaption.json"
IDS_FILE, CLASSES_FILE, INDEX_FILE, COUNTS_FILE = FILES = (
    *("ids.bin", "pos.bin", "index.npy", "token_counts.npy"),
)
# offset and tokens count ids; crc32 is over the ids' bytes and the classes' after them.
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("tokens", "<u2"), ("crc32", "<u4")])
AGAIN = "make them again with `python -m data_prep recaption`"
_STRICT = ConfigDict(strict=True, extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file of the folder."""

    bytes: int
    sha256: str


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class RecaptionInfo:
    """What the captions were made of, and which files hold them."""

    dataset_fingerprint: str  # sha256 of the manifest
    tokenizer_sha256: str
    tagger: str
    template: str
    limits: dict[str, Any]  # the other options of the caption
    key: str  # the table's column
    match: str | None  # the metadata column that it was compared with; None: the samples' keys
    tables: dict[str, str]  # path of each file that was read, in their common folder -> its sha256
    samples_matched: int  # samples that have the caption
    samples_unmatched: int
    rows_matched: int  # rows of the table whose caption a sample has
    rows_unmatched: int  # rows whose key no sample has
    rejected: dict[str, int]  # reason -> rows of the table without a key or this caption
    files: dict[str, FileInfo]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


class Recaption:
    """One finished folder of a dataset. Its reads may run in many threads.

    Opening reads the index's file whole (14 bytes a sample); what is read of the others is checked
    by each row's crc32. ValueError, in one line, on a folder of another state of the dataset, and
    on files that are not the recorded ones.
    """

    def __init__(self, dataset_dir: Path, manifest: Manifest, name: str, option: str) -> None:
        self.name = name
        self.folder = recaption_folder(dataset_dir, name, option)
        content = _read(self.folder / INFO_FILE)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.info = _parse(self.folder, content)
        self._check_state(dataset_dir, manifest, option)
        self._dtype = np.dtype(manifest.token_dtype)
        self._vocab_size = manifest.tokenizer.vocab_size
        for file, told in self.info.files.items():
            if (size := (self.folder / file).stat().st_size) != told.bytes:
                raise ValueError(
                    f"{self.folder / file} has {size:,} bytes, {INFO_FILE} says {told.bytes:,}: "
                    f"copy it again, or remove its folder and {AGAIN}"
                )
        self.index = self._read_array(INDEX_FILE)
        if self.index.dtype != INDEX_DTYPE or self.index.shape != (manifest.samples,):
            raise ValueError(
                f"{self.folder / INDEX_FILE} holds {self.index.dtype} {self.index.shape}, not "
                f"one row for each of {manifest.samples} samples: remove its folder and {AGAIN}"
            )

    def _check_state(self, dataset_dir: Path, manifest: Manifest, option: str) -> None:
        for what, made, now in (
            ("dataset fingerprint", self.info.dataset_fingerprint, manifest.fingerprint),
            ("tokenizer", self.info.tokenizer_sha256, manifest.tokenizer.sha256),
        ):
            if made != now:
                raise ValueError(
                    f"{option}: {self.folder} was made from another version of {dataset_dir} "
                    f"({what} {made[:12]}, now {now[:12]}): remove it and {AGAIN}"
                )
        if set(self.info.files) != set(FILES):
            raise ValueError(
                f"{self.folder / INFO_FILE} names files {sorted(self.info.files)}, expected "
                f"{sorted(FILES)}: remove its folder and {AGAIN}"
            )

    def _check_sha256(self, file: str) -> None:
        if file_sha256(self.folder / file) != self.info.files[file].sha256:
            raise ValueError(
                f"{self.folder / file}: its sha256 is not that of {INFO_FILE}: copy it again, or "
                f"remove its folder and {AGAIN}"
            )

    def _read_array(self, file: str) -> NDArray[Any]:
        self._check_sha256(file)
        try:
            return read_array(self.folder / file)
        except ValueError as error:
            raise ValueError(
                f"{self.folder / file} is {error}: remove its folder and {AGAIN}"
            ) from error

    def check_whole(self) -> None:
        """ValueError where a file is not the recorded one; reads all."""
        for file in FILES:
            self._check_sha256(file)

    @cached_property
    def counts(self) -> NDArray[np.uint64]:
        """(vocab_size,) how often each id occurs."""
        return self._read_array(COUNTS_FILE)

    def read(self, row: int) -> tuple[NDArray[np.integer], NDArray[np.uint8]] | None:
        """(ids, word classes) of a sample that has the caption; None where they are damaged."""
        offset, tokens, crc32 = self.index[row].item()
        width = self._dtype.itemsize
        if (offset + tokens) * width > self.info.files[IDS_FILE].bytes:
            return None
        ids = SHARD_READER.read(str(self.folder / IDS_FILE), offset * width, tokens * width)
        classes = SHARD_READER.read(str(self.folder / CLASSES_FILE), offset, tokens)
        if zlib.crc32(classes, zlib.crc32(ids)) != crc32:
            return None
        numbers = np.frombuffer(ids, self._dtype)
        if numbers.max(initial=0) >= self._vocab_size:
            return None
        return numbers, np.frombuffer(classes, np.uint8)


def recaption_names(dataset_dir: Path) -> list[str]:
    """Names of the finished folders beside a dataset."""
    return sorted(path.parent.name for path in _infos(dataset_dir))


def open_recaptions(
    dataset_dir: Path,
    manifest: Manifest,
    names: Iterable[str],
    option: str = "data.caption_weights",
) -> tuple[Recaption, ...]:
    """Those of these captions that the manifest does not know, sorted by name.

    ValueError, naming the option, where there is no such folder, or one that does not fit.
    """
    wanted = sorted(set(names) - set(manifest.captions))
    found = recaption_names(dataset_dir) if wanted else []
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{option} names {missing}, {dataset_dir} has captions {manifest.captions} and "
            f"recaptions {found}: name some of these, or make one with `python -m data_prep "
            "recaption`"
        )
    return tuple(Recaption(dataset_dir, manifest, name, option) for name in wanted)


def count_ids(
    dataset_dir: Path, manifest: Manifest, recaptions: Sequence[Recaption] = ()
) -> tuple[NDArray[np.uint64], int]:
    """(how often each id occurs (vocab_size,), in at most so many captions) of a dataset's captions
    and these. ValueError or OSError names the file that is not the recorded one."""
    counts = read_token_counts(dataset_dir, manifest)
    for one in recaptions:
        counts += one.counts
    matched = sum(one.info.samples_matched for one in recaptions)
    return counts, manifest.samples * len(manifest.captions) + matched


def recaptions_sha256(recaptions: Iterable[Recaption]) -> str:
    """What the captions' bytes and names are known by; nothing where there are none."""
    told = [f"{one.name} {one.sha256}\n" for one in recaptions]
    return hashlib.sha256("".join(told).encode()).hexdigest() if told else ""


def _infos(dataset_dir: Path) -> list[Path]:
    return list((dataset_dir / RECAPTIONS_FOLDER).glob(f"*/{INFO_FILE}"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"there is no {path}: {AGAIN}") from error


def _parse(folder: Path, content: bytes) -> RecaptionInfo:
    try:
        return TypeAdapter(RecaptionInfo).validate_json(content)
    except ValidationError as error:
        raise ValueError(
            f"{folder / INFO_FILE}: {error.errors()[0]['msg']}; remove its folder and {AGAIN}"
        ) from error
