"""A dataset's pictures, texts and metadata as plain WebDataset shards, for other trainers.

OUT/export.json   what is exported of what; another request is refused
OUT/00000.tar …   KEY.jpg, KEY.txt and KEY.json of each sample

First come the rows in the dataset's order, then the second copies of those that weights repeat,
then the third: copies of a picture lie far apart, since a trainer's shuffle is local. A shard is
there only when it is whole, and depends on the request alone, so a killed command goes on, and any
number of processes can share the shards.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from data_prep.build.ustar import encode_header, end_of_archive, padding
from data_prep.dataset_tasks import FarOptions
from data_prep.pool import Pace, Report, RunOptions, run_in_pool, share_of
from pretrain.base.checks import check_local, check_positive
from pretrain.base.files import aside, write_durably
from pretrain.base.lock import locked
from pretrain.base.progress import Bar
from pretrain.dataset.jpeg import START_OF_JPEG
from pretrain.dataset.manifest import MANIFEST_FILE, SHARD_FILE, read_manifest, tier_for
from pretrain.dataset.pictures import open_picture
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import SampleWeights, read_weights
from pretrain.dataset.shards import ShardOptions

_EXPORT_FILE = "export.json"
_BLOCK_POINTS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """What is exported, and who does it"""

    weights: str | None = None
    """Name of the dataset's weights: a row of weight 0 is left out, one of 2.5 comes two or three
    times. Null: every row once."""
    caption: str | None = None
    """Caption that is the text; rows without it are left out. Null: each sample's first."""
    tier: str | None = None
    """Image tier whose pictures are exported. Null: the largest."""
    shard_samples: int = 10_000
    """Samples in a shard; the last one may have fewer."""
    task_index: int | None = None
    """Make the share of this number, from 0, of `task_count`: neighbouring shards."""
    task_count: int | None = None
    """How many shares there are, e.g. the tasks of a Slurm array."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive({"--shard-samples": self.shard_samples})


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class _ExportInfo:
    """What decides the shards' bytes."""

    dataset_fingerprint: str  # sha256 of the manifest
    weights: str | None  # sha256 of their file
    caption: str | None  # None: each sample's first
    tier: str
    shard_samples: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """The rows of one shard, and the number of each one's copy, from 0."""

    path: Path
    rows: NDArray[np.int64]
    copies: NDArray[np.int64]


def export(directory: Path, out: Path, options: ExportOptions, far: FarOptions) -> str:
    """Make what is missing of OUT; returns a line of what is there now, and how to read it.

    ValueError or FileNotFoundError name what to change, before anything is written.
    """
    check_local({"OUT": out})
    manifest = read_manifest(directory)
    tier = options.tier or tier_for(manifest, sys.maxsize)
    reader = Dataset(directory, tier, "--tier", far.shards)
    weights, sha256 = np.ones(manifest.samples, "<f4"), None
    if options.weights is not None:
        weights, sha256 = read_weights(directory, options.weights, manifest, "--weights")
    weights, lacking = _having(reader, weights, options.caption)
    rows, copies = _in_order(weights)
    info = _ExportInfo(
        dataset_fingerprint=manifest.fingerprint,
        weights=sha256,
        caption=options.caption,
        tier=reader.tier,
        shard_samples=options.shard_samples,
        samples=len(rows),
    )
    _begin(out, info)
    shards = [
        _Shard(
            path=out / SHARD_FILE.format(shard=number),
            rows=rows[first : first + options.shard_samples],
            copies=copies[first : first + options.shard_samples],
        )
        for number, first in enumerate(range(0, len(rows), options.shard_samples))
    ]
    if all(shard.path.exists() for shard in shards):
        print(f"note: {out} is finished", file=sys.stderr)
    share = [shards[i] for i in share_of(len(shards), options)]
    missing = [shard for shard in share if not shard.path.exists()]
    total, left = (sum(len(shard.rows) for shard in some) for some in (share, missing))
    with Bar(total=total, done=total - left, unit="samples", what="export") as bar:
        job = directory, info, far.shards
        for _ in run_in_pool(_write_shard, job, missing, options, bar.update):
            pass
    if others := sum(not shard.path.exists() for shard in shards):
        return f"{out}: {others} shards are left to other processes"
    return _summary(out, info, shards, lacking)


def _having(
    reader: Dataset, weights: NDArray[np.float32], caption: str | None
) -> tuple[NDArray[np.float32], int]:
    """The weights, 0 where a row lacks the caption, and how many rows that leaves out.

    ValueError where the dataset lacks it, or nothing is left.
    """
    if caption is None:
        return weights, 0
    names = reader.manifest.captions
    if caption not in names:
        raise ValueError(
            f"--caption={caption!r}: the shards of {reader.directory} hold the captions {names}; "
            "choose one of them"
        )
    absent = reader.index["tokens"][:, names.index(caption)] == 0
    lacking = int(np.count_nonzero(absent & (weights > 0)))
    weights = np.where(absent, np.float32(0), weights)
    if not weights.any():
        raise ValueError(
            f"--caption={caption!r}: all {lacking:,} rows that the weights keep lack it; choose "
            f"another of {names}, or other --weights"
        )
    return weights, lacking


def _in_order(weights: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row of each exported sample, and the number of its copy.

    A row comes as often as an epoch of training shows it whose first point lies half a step in.
    """
    drawn = SampleWeights(weights)
    counts = np.zeros(len(weights), np.int64)
    for first in range(0, drawn.epoch_samples, _BLOCK_POINTS):
        points = np.arange(first, min(first + _BLOCK_POINTS, drawn.epoch_samples))
        rows = drawn.rows(points, 0.5)
        counts[rows[0] : rows[-1] + 1] += np.bincount(rows - rows[0])
    passes: list[NDArray[np.int64]] = []
    left = np.flatnonzero(counts)
    while len(left):
        passes.append(left)
        left = left[counts[left] > len(passes)]
    lengths = [len(one) for one in passes]
    return np.concatenate(passes), np.repeat(np.arange(len(passes)), lengths)


def _begin(out: Path, info: _ExportInfo) -> None:
    """Record what is to be made; ValueError where something else was begun or made here."""
    path = out / _EXPORT_FILE
    with locked(out, keep=False):  # another process may begin just now
        if not path.exists():
            if (out / MANIFEST_FILE).exists() or any(out.glob("*.tar")):
                raise ValueError(f"{out} holds shards of something else: choose another OUT")
            write_durably(path, json.dumps(asdict(info), indent=2, sort_keys=True) + "\n")
    try:
        before = asdict(TypeAdapter(_ExportInfo).validate_json(path.read_bytes()))
    except ValidationError as error:
        raise ValueError(
            f"{path}: {error.errors()[0]['msg']}; choose another OUT, or remove {out}"
        ) from error
    if other := [name for name, value in asdict(info).items() if before[name] != value]:
        raise ValueError(
            f"{out} was made with another {', '.join(other)}: choose another OUT, or remove that "
            "folder to make it anew"
        )


def _write_shard(
    job: tuple[Path, _ExportInfo, ShardOptions], shard: _Shard, report: Report
) -> None:
    """One shard, whole under its name. job: the dataset, what is asked of it, and where its shards
    are read. Reports the samples since the last report."""
    pace, told = Pace(), 0
    with aside(shard.path) as file:
        for place, (key, members) in enumerate(_samples(*job, shard)):
            for suffix, content in members.items():
                header = encode_header(f"{key}.{suffix}", len(content))
                file.write(header + content + padding(len(content)))
            if pace.is_due():
                report(place - told)
                told = place
        file.write(end_of_archive(file.tell()))
    report(len(shard.rows) - told)


def _samples(
    directory: Path, info: _ExportInfo, shards: ShardOptions, shard: _Shard
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, suffix -> content) of each sample. ValueError names a damaged one."""
    reader = Dataset(directory, info.tier, shards=shards, looks=False)
    contents = reader.members(shard.rows, ("jpg", "txt", "json"))
    rows = zip(shard.rows.tolist(), shard.copies.tolist(), strict=True)
    try:
        for (row, copy), (picture, text, details) in zip(rows, contents, strict=True):
            told = json.loads(details)
            if info.caption is not None:
                text = told["captions"][info.caption].encode()
            meta = json.dumps(told["meta"], ensure_ascii=False).encode()
            members = {_suffix(picture): picture, "txt": text, "json": meta}
            yield reader.key(row) + (f"-{copy}" if copy else ""), members
    except ValueError as error:  # a sample's own kind does not travel between processes
        raise ValueError(f"{directory}, tier {info.tier}: {error}") from error


def _suffix(picture: bytes) -> str:
    """How a file of its format is named: pictures kept in place may be no JPEG."""
    if picture.startswith(START_OF_JPEG):
        return "jpg"
    return str(open_picture(picture).format).lower()


def _summary(out: Path, info: _ExportInfo, shards: list[_Shard], lacking: int) -> str:
    """What is there, and what open_clip's trainer needs to be told."""
    last = shards[-1].path.stem
    files = f"{out}/{{00000..{last}}}.tar" if len(shards) > 1 else str(shards[0].path)
    left_out = f"; {lacking:,} rows without it are left out" if lacking else ""
    return (
        f"{out}: {info.samples:,} samples in {len(shards)} shards, pictures of tier {info.tier}, "
        f"texts: {info.caption or 'the first caption'}{left_out}\n"
        f"read them as WebDataset, e.g. by open_clip with --dataset-type webdataset --train-data "
        f"'{files}' --train-num-samples {info.samples}"
    )
