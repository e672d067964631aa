"""A dataset directory read in full against its manifest, indices and checksums."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from data_prep.build.duplicates import find_repeated_rows
from data_prep.dataset_tasks import DatasetTasks, FarOptions
from data_prep.pool import PoolOptions, RunOptions, is_share, usable_workers
from data_prep.verify_tasks import (
    OTHER_SHA256,
    Check,
    IndexCheck,
    RowCheck,
    ShardCheck,
    VerifyState,
    faults_of,
)
from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256, final_name, why_not_written
from pretrain.base.progress import Bar
from pretrain.dataset.captions import Recaption, recaption_names
from pretrain.dataset.concepts import read_concepts
from pretrain.dataset.embeddings import EMBEDDINGS_FILE, open_embeddings
from pretrain.dataset.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    Manifest,
    index_dtype,
    path_inside,
    read_manifest,
    read_token_counts,
)
from pretrain.dataset.pictures_in_place import read_pictures_root
from pretrain.dataset.rows import row_blocks
from pretrain.dataset.sample_weights import read_weights
from pretrain.dataset.shards import ShardCopies, ShardOptions, open_copies

_BLOCK_ROWS = 1 << 18
_KEY_ROWS = 1 << 20


def verify(directory: Path, pool: RunOptions, far: FarOptions) -> int:
    """Say what is wrong with a dataset, or that nothing is; returns the exit status."""
    faults = 0
    for fault in dataset_faults(directory, pool, far.shards):
        print(" ".join(fault.split()))
        faults += 1
    if not faults and not is_share(pool):
        print(f"{directory}: everything is as its manifest says")
    return 1 if faults else 0


def dataset_faults(
    directory: Path, pool: PoolOptions, shards: ShardOptions | None = None
) -> Iterator[str]:
    """Yield what is wrong, a line each; nothing if all is right.

    Of a share: what is wrong with its shards and rows; stdout has a line when it is done.
    """
    try:
        manifest = read_manifest(directory)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    indexed: list[str] = []
    for tier in manifest.tiers:
        faults = list(_index_faults(directory, manifest, tier))
        if not faults:
            indexed.append(tier)
        elif not is_share(pool):
            yield from faults
    if not is_share(pool):
        yield from _tokenizer_faults(directory, manifest)
        yield from _token_counts_faults(directory, manifest)
        yield from _faults_beside(directory, manifest)
        for tier in manifest.tiers:
            yield from _stray_files(directory, manifest, tier)
    tasks = _tasks(directory, manifest, indexed, shards or ShardOptions(), pool)
    done = tasks.do(pool, "checks")
    found = (fault for record in tasks.records.of_share(pool) for fault in record["faults"])
    yield from dict.fromkeys(found)
    if done is not None:
        print(done)
        return
    if len(indexed) == len(manifest.tiers):
        yield from _repeated_keys(directory, manifest)
    tasks.remove()


def _tasks(
    directory: Path,
    manifest: Manifest,
    indexed: list[str],
    shards: ShardOptions,
    pool: PoolOptions,
) -> DatasetTasks[VerifyState, Check]:
    """All that many processes can share. A shard's result counts while its file is the same."""
    copies: dict[str, ShardCopies] = {}
    for tier, info in manifest.tiers.items():
        if (found := open_copies(shards, directory, manifest, tier)) is not None:
            copies[tier] = found
            largest = max(shard.bytes for shard in info.shards)
            if found.limit_bytes < (workers := usable_workers(pool.workers) + 1) * largest:
                raise ValueError(
                    f"{shards.option('cache_gib')}={shards.cache_gib:g} is too small for {workers} "
                    f"shards of {largest / 2**30:.3g} GiB: raise it, or give fewer --workers"
                )
    items: list[Check] = [IndexCheck(tier=tier) for tier in manifest.tiers]
    if len(indexed) == len(manifest.tiers):
        blocks = row_blocks(manifest.samples, _BLOCK_ROWS)
        items += [RowCheck(first=first, stop=stop) for first, stop in blocks]
    marks = [""] * len(items)
    root = None
    for tier, info in manifest.tiers.items():
        firsts = np.cumsum([0, *(shard.samples for shard in info.shards)]).tolist()
        for number, shard in enumerate(info.shards):
            items.append(ShardCheck(tier=tier, number=number, first=firsts[number]))
            files = [] if tier in copies else [directory / shard.file]
            if shard.pictures is not None:
                with suppress(OSError, ValueError):  # the check will say it
                    root = root or read_pictures_root(directory)
                    files.append(root / shard.pictures.file)
            marks.append("".join(map(_mark, files)))
    return DatasetTasks(
        directory=directory,
        name="verify",
        asked={
            "dataset": manifest.fingerprint,
            "indices": [_mark(directory / tier / INDEX_FILE) for tier in manifest.tiers],
            "indexed": indexed,
            "shards": shards.url,
        },
        function=faults_of,
        state=VerifyState(directory=directory, manifest=manifest, indexed=indexed, copies=copies),
        items=items,
        marks=marks,
    )


def _mark(path: Path) -> str:
    """Another where a file has been written since."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return "-none"
    return f"-{found.st_size:x}-{found.st_mtime_ns:x}"


def _tokenizer_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the tokenizer's file."""
    try:
        path = path_inside(directory, manifest.tokenizer.file, "tokenizer.file")
        if file_sha256(path) != manifest.tokenizer.sha256:
            yield f"{path}: {OTHER_SHA256}"
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


def _repeated_keys(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Keys that occur twice: one process sorts them on the disk, 16 bytes a row."""
    name = next(iter(manifest.tiers))
    index = read_array(directory / name / INDEX_FILE)
    starts = range(0, manifest.samples, _KEY_ROWS)
    told = Bar(starts, unit="blocks of rows", what="look for keys that occur twice")
    try:
        keys = (index["key"][start : start + _KEY_ROWS] for start in told)
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
