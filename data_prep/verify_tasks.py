"""What is checked of a dataset directory as tasks that many processes share: its indices as files,
blocks of their rows, and shards."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.build.writer import verify_shard
from data_prep.records import Record
from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256
from pretrain.dataset.far_files import FarFileError, OtherFileError
from pretrain.dataset.manifest import INDEX_FILE, MEMBERS, Manifest, members_inside, path_inside
from pretrain.dataset.pictures_in_place import check_pictures, read_pictures_root
from pretrain.dataset.shards import ShardCopies

OTHER_SHA256 = "its sha256 is not the manifest's"


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """One shard, and the range of index rows that describe it."""

    tier: str
    number: int
    first: int


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """A block of rows of all indices, which contradict each other or themselves."""

    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class IndexCheck:
    """A tier's index as a file."""

    tier: str


Check = IndexCheck | RowCheck | ShardCheck


@dataclass(frozen=True, kw_only=True)
class VerifyState:
    """What every check needs."""

    directory: Path
    manifest: Manifest
    indexed: list[str]  # the tiers whose index can be read
    copies: dict[str, ShardCopies]  # of the tiers whose shards come from afar


def faults_of(state: VerifyState, check: Check) -> Record:
    """What is wrong, a line each."""
    if isinstance(check, ShardCheck):
        return {"faults": _shard_faults(state, check)}
    if isinstance(check, RowCheck):
        return {"faults": list(_row_faults(state.directory, state.manifest, check))}
    path = state.directory / check.tier / INDEX_FILE
    with suppress(OSError):  # who opens it says that
        if file_sha256(path) != state.manifest.tiers[check.tier].index_sha256:
            return {"faults": [f"{path}: {OTHER_SHA256}"]}
    return {"faults": []}


def _row_faults(directory: Path, manifest: Manifest, check: RowCheck) -> Iterator[str]:
    """What the indices contradict each other or themselves in, in a block of rows."""
    indices = {tier: read_array(directory / tier / INDEX_FILE) for tier in manifest.tiers}
    name, one = manifest.text_tier, indices[manifest.text_tier]
    part, numbers = slice(check.first, check.stop), np.arange(check.first, check.stop)
    for tier, index in indices.items():
        ends = np.cumsum([shard.samples for shard in manifest.tiers[tier].shards])
        path = directory / tier / INDEX_FILE
        if (index["key"][part] != one["key"][part]).any():
            yield f"{path}: its keys are not those of the tier {name}"
        if any((index[member][part] != one[member][part]).any() for member in MEMBERS[1:]):
            yield f"{path}: its ids and texts are not those of the tier {name}"
        if (index["shard"][part] != np.searchsorted(ends, numbers, side="right")).any():
            yield f"{path}: its shard numbers do not go with the manifest's counts"
        tokens = index["tokens"][part].sum(axis=1, dtype=np.int64)
        width = np.dtype(manifest.token_dtype).itemsize
        if (index["ids"]["size"][part] != tokens * width).any() or (
            index["pos"]["size"][part] != tokens
        ).any():
            yield f"{path}: its token counts do not go with the sizes of ids and pos"


def _picture_faults(tar: Path, rows: np.ndarray) -> Iterator[str]:
    """Pictures of a tar in place that are not what they were; row by row, each read once."""
    with tar.open("rb") as file:
        for offset, size, crc32 in rows["jpg"].tolist():
            file.seek(offset)
            if zlib.crc32(file.read(size)) != crc32:
                yield f"{tar}: the picture at byte {offset:,} is another than was indexed"


def _shard_faults(state: VerifyState, check: ShardCheck) -> list[str]:
    """What is wrong with one shard. Its members are compared with the index where that is there."""
    info = state.manifest.tiers[check.tier].shards[check.number]
    faults: list[str] = []
    place = None
    if (copies := state.copies.get(check.tier)) is not None:
        place = copies.paths[check.tier][check.number]
        copies.use(place)
        try:
            copies.bring(place)
        except FarFileError as error:
            if not isinstance(error.__cause__, OtherFileError):
                raise  # what an outage causes is no fault of the dataset's
            return [str(error)]
    try:
        if place is not None:
            path = Path(place)
        else:
            path = path_inside(state.directory, info.file, f"tiers.{check.tier}.shards")
        size = path.stat().st_size
        if size != info.bytes:
            return [f"{path}: {size:,} bytes, the manifest has {info.bytes:,}"]
        if file_sha256(path) != info.sha256:
            faults.append(f"{path}: {OTHER_SHA256}")
        if check.tier in state.indexed:
            index = read_array(state.directory / check.tier / INDEX_FILE)
            rows = index[check.first : check.first + info.samples]
            is_text_tier = check.tier == state.manifest.text_tier
            verify_shard(path, rows.tolist(), members_inside(info.pictures, is_text_tier))
            if info.pictures is not None:
                root = read_pictures_root(state.directory)
                faults += _picture_faults(check_pictures(root, info.pictures), rows)
    except (ValueError, OSError, OverflowError) as error:
        return [*faults, str(error)]
    return faults
