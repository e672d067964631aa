"""A dataset directory read in full against its manifest, indices and checksums."""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from data_prep.build.duplicates import find_repeated_rows
from data_prep.build.writer import verify_shard
from data_prep.pool import PoolOptions, Report, run_in_pool
from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256, final_name, why_not_written
from pretrain.base.progress import Bar
from pretrain.dataset.captions import Recaption, recaption_names
from pretrain.dataset.concepts import read_concepts
from pretrain.dataset.embeddings import EMBEDDINGS_FILE, open_embeddings
from pretrain.dataset.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    MEMBERS,
    Manifest,
    ShardInfo,
    index_dtype,
    members_inside,
    path_inside,
    read_manifest,
    read_token_counts,
)
from pretrain.dataset.pictures_in_place import check_pictures, read_pictures_root
from pretrain.dataset.sample_weights import read_weights

_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _ShardCheck:
    """One shard and the range of index rows that describe it."""

    tier: str
    info: ShardInfo
    first: int


@dataclass(frozen=True, kw_only=True)
class _VerifyState:
    """What the check of every shard needs."""

    directory: Path
    text_tier: str
    indexed: set[str]  # the tiers whose index can be read


def verify(directory: Path, pool: PoolOptions) -> int:
    """Say what is wrong with a dataset, or that nothing is; returns the exit status."""
    faults = 0
    for fault in dataset_faults(directory, pool):
        print(" ".join(fault.split()))
        faults += 1
    if not faults:
        print(f"{directory}: everything is as its manifest says")
    return 1 if faults else 0


def dataset_faults(directory: Path, pool: PoolOptions) -> Iterator[str]:
    """Yield what is wrong, a line each; nothing if all is right."""
    try:
        manifest = read_manifest(directory)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    yield from _tokenizer_faults(directory, manifest)
    yield from _token_counts_faults(directory, manifest)
    yield from _faults_beside(directory, manifest)
    indexed: set[str] = set()
    for tier in manifest.tiers:
        faults = list(_index_faults(directory, manifest, tier))
        if not faults:
            indexed.add(tier)
        yield from faults
        yield from _stray_files(directory, manifest, tier)
    if len(indexed) == len(manifest.tiers):
        yield from _row_faults(directory, manifest)
    checks: list[_ShardCheck] = []
    for tier in manifest.tiers:
        first = 0
        for info in manifest.tiers[tier].shards:
            checks.append(_ShardCheck(tier=tier, info=info, first=first))
            first += info.samples
    state = _VerifyState(directory=directory, text_tier=manifest.text_tier, indexed=indexed)
    results = run_in_pool(_shard_faults, state, checks, pool, lambda _: None)
    for faults in Bar(results, total=len(checks), unit="shards", what="verify"):
        yield from faults


def _tokenizer_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the tokenizer's file."""
    try:
        path = path_inside(directory, manifest.tokenizer.file, "tokenizer.file")
        if file_sha256(path) != manifest.tokenizer.sha256:
            yield f"{path}: its sha256 is not the manifest's"
    except (ValueError, OSError) as error:
        yield str(error)


def _token_counts_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the counts of token ids."""
    try:
        read_token_counts(directory, manifest)
    except (ValueError, OSError) as error:
        yield str(error)


def _faults_beside(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the captions, weights, concepts and embeddings that came later."""

    def captions(name: str) -> None:
        Recaption(directory, manifest, name, "captions").check_whole()

    checks: list[tuple[Callable[[str], object], list[str]]] = [
        (captions, recaption_names(directory)),
        (
            lambda name: read_weights(directory, name, manifest, "weights"),
            sorted(file.stem for file in directory.glob("weights/*.npy")),
        ),
        (
            lambda name: read_concepts(directory, name, manifest, "concepts"),
            sorted(file.stem for file in directory.glob("concepts/*.npy")),
        ),
        (
            lambda name: open_embeddings(directory, manifest, name),
            sorted(file.parent.name for file in directory.glob(f"embeddings/*/{EMBEDDINGS_FILE}")),
        ),
    ]
    for check, names in checks:
        for name in names:
            try:
                check(name)
            except (ValueError, OSError) as error:
                yield str(error)


def _index_faults(directory: Path, manifest: Manifest, tier: str) -> Iterator[str]:
    """What is wrong with a tier's index as a file."""
    path = directory / tier / INDEX_FILE
    try:
        path = path_inside(directory, f"{tier}/{INDEX_FILE}", "tiers")
        if file_sha256(path) != manifest.tiers[tier].index_sha256:
            yield f"{path}: its sha256 is not the manifest's"
        rows = read_array(path)
    except (ValueError, OSError) as error:
        yield f"{path}: {error}"
        return
    if rows.dtype != index_dtype(len(manifest.captions)) or rows.ndim != 1:
        yield f"{path}: its columns do not go with {len(manifest.captions)} captions"
    elif len(rows) != manifest.samples:
        yield f"{path}: {len(rows)} rows, the manifest has {manifest.samples} samples"


def _stray_files(directory: Path, manifest: Manifest, tier: str) -> Iterator[str]:
    """Shards that the manifest does not name."""
    known = {shard.file for shard in manifest.tiers[tier].shards}
    folder = directory / tier
    for path in sorted(folder.glob("*.tar*")) if folder.is_dir() else []:
        if f"{tier}/{path.name}" not in known and re.fullmatch(r"\d+\.tar", final_name(path.name)):
            yield f"{path}: the manifest does not name it"


def _row_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What the indices contradict each other or themselves in. They are right as files."""
    indices = {tier: read_array(directory / tier / INDEX_FILE) for tier in manifest.tiers}
    name, one = manifest.text_tier, indices[manifest.text_tier]
    starts = range(0, manifest.samples, _BLOCK_ROWS)
    for tier, index in indices.items():
        ends = np.cumsum([shard.samples for shard in manifest.tiers[tier].shards])
        for start in Bar(starts, unit="blocks of rows", what=f"look through {tier}/{INDEX_FILE}"):
            part = slice(start, start + _BLOCK_ROWS)
            path = directory / tier / INDEX_FILE
            if (index["key"][part] != one["key"][part]).any():
                yield f"{path}: its keys are not those of the tier {name}"
            if any((index[member][part] != one[member][part]).any() for member in MEMBERS[1:]):
                yield f"{path}: its ids and texts are not those of the tier {name}"
            numbers = np.arange(start, min(start + _BLOCK_ROWS, manifest.samples))
            if (index["shard"][part] != np.searchsorted(ends, numbers, side="right")).any():
                yield f"{path}: its shard numbers do not go with the manifest's counts"
            tokens = index["tokens"][part].sum(axis=1, dtype=np.int64)
            width = np.dtype(manifest.token_dtype).itemsize
            if (index["ids"]["size"][part] != tokens * width).any() or (
                index["pos"]["size"][part] != tokens
            ).any():
                yield f"{path}: its token counts do not go with the sizes of ids and pos"
    try:
        keys = (one["key"][start : start + _BLOCK_ROWS] for start in starts)
        again = find_repeated_rows(keys, manifest.samples, Path(gettempdir()))
    except ValueError:
        yield f"{directory / name / INDEX_FILE}: keys that are not 16 hexadecimal digits"
        return
    except OSError as error:
        raise OSError(
            f"{gettempdir()}: {why_not_written(error, Path(gettempdir()))}: the keys of "
            f"{manifest.samples:,} rows are sorted there, 16 bytes each; name another folder by "
            "TMPDIR"
        ) from error
    if len(again):
        yield f"{directory / MANIFEST_FILE}: {len(again)} keys occur twice, e.g. in row {again[0]}"


def _picture_faults(tar: Path, rows: np.ndarray) -> Iterator[str]:
    """Pictures of a tar in place that are not what they were; row by row, each read once."""
    with tar.open("rb") as file:
        for offset, size, crc32 in rows["jpg"].tolist():
            file.seek(offset)
            if zlib.crc32(file.read(size)) != crc32:
                yield f"{tar}: the picture at byte {offset:,} is another than was indexed"


def _shard_faults(state: _VerifyState, check: _ShardCheck, report: Report) -> list[str]:
    """What is wrong with one shard. Its members are compared with the index where that is there."""
    del report
    faults: list[str] = []
    try:
        path = path_inside(state.directory, check.info.file, f"tiers.{check.tier}.shards")
        size = path.stat().st_size
        if size != check.info.bytes:
            return [f"{path}: {size:,} bytes, the manifest has {check.info.bytes:,}"]
        if file_sha256(path) != check.info.sha256:
            faults.append(f"{path}: its sha256 is not the manifest's")
        if check.tier in state.indexed:
            index = read_array(state.directory / check.tier / INDEX_FILE)
            rows = index[check.first : check.first + check.info.samples]
            members = members_inside(check.info.pictures, check.tier == state.text_tier)
            verify_shard(path, rows.tolist(), members)
            if check.info.pictures is not None:
                root = read_pictures_root(state.directory)
                faults += _picture_faults(check_pictures(root, check.info.pictures), rows)
    except (ValueError, OSError) as error:
        return [*faults, str(error)]
    return faults
