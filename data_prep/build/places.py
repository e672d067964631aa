"""Shards of finished parts to their places in the dataset, by renaming; the indices over them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.build.tasks import WORK_FOLDER, Part, Plan
from data_prep.build.writer import COUNTS, array_file, write_index
from data_prep.sources.far import at_once
from data_prep.store import Store
from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256, sync, write_durably
from pretrain.base.progress import Bar
from pretrain.dataset.manifest import (
    INDEX_FILE,
    SHARD_FILE,
    TOKEN_COUNTS_FILE,
    ShardInfo,
    TierInfo,
    TokenCountsInfo,
    index_dtype,
)


@dataclass(frozen=True, kw_only=True)
class ShardPlace:
    """A part on the disk: FOLDER/STEM.json and its other files."""

    folder: Path
    stem: str
    part: Part

    def path(self, tier: str, kind: str) -> Path:
        """One of its files."""
        return self.folder / f"{self.stem}.{tier}.{kind}"

    def rows(self, tier: str) -> np.ndarray:
        """Its index rows in a tier."""
        return np.array(read_array(self.path(tier, "npy")))


def place_shards(
    out: Path, plan: Plan, kept: list[ShardPlace], store: Store | None
) -> dict[str, TierInfo]:
    """Give the shards their numbers and write the indices."""
    tiers: dict[str, TierInfo] = {}
    for tier in plan.tiers:
        folder = out / tier.name
        folder.mkdir(exist_ok=True)
        move = partial(_move_shard, out, tier.name, store)
        infos = list(
            Bar(
                at_once(move, enumerate(kept)),
                total=len(kept),
                unit="shards",
                what=f"place {tier.name}",
            )
        )
        if store is not None:
            _check_sent(store, tier.name, infos)
        sync(folder)
        digest = write_index(
            folder / INDEX_FILE,
            index_dtype(len(plan.captions)),
            sum(place.part.samples for place in kept),
            _number_rows(tier.name, kept),
        )
        tiers[tier.name] = TierInfo(
            shortest_px=tier.shortest_px,
            jpeg_quality=tier.jpeg_quality,
            shards=infos,
            index_sha256=digest,
        )
    return tiers


def write_token_counts(out: Path, plan: Plan, kept: list[ShardPlace]) -> TokenCountsInfo:
    """How often each id occurs in what is kept: the sum of the parts' counts."""
    total = np.zeros(plan.tokenizer.vocab_size, "<u8")
    for counts in at_once(lambda place: place.rows(COUNTS), kept):
        total[counts[0]] += counts[1]
    path = out / TOKEN_COUNTS_FILE
    write_durably(path, array_file(total))
    return TokenCountsInfo(file=path.name, sha256=file_sha256(path))


def _move_shard(
    out: Path, tier: str, store: Store | None, numbered: tuple[int, ShardPlace]
) -> ShardInfo:
    """Rename a shard, unless that was done before a kill. OSError if it is nowhere."""
    number, place = numbered
    name, path = f"{tier}/{SHARD_FILE.format(shard=number)}", place.path(tier, "tar")
    info = replace(place.part.shards[tier], file=name)
    if store is not None:
        store.move(path.relative_to(out).as_posix(), name)
        return info
    if path.exists():
        path.replace(out / name)
    if not (out / name).is_file() or (out / name).stat().st_size != info.bytes:
        raise OSError(
            f"{path} is missing or not of {info.bytes} bytes; remove {out / WORK_FOLDER} and give "
            "the build's command again"
        )
    return info


def _check_sent(store: Store, tier: str, infos: list[ShardInfo]) -> None:
    """OSError where a shard is not in its place there."""
    there = store.sizes(tier)
    for info in infos:
        if there.get(info.file) != info.bytes:
            raise OSError(
                f"{store.address}/{info.file} has {there.get(info.file)} bytes, needed "
                f"{info.bytes}: run the build's command again with --overwrite"
            )


def _number_rows(tier: str, kept: list[ShardPlace]) -> Iterator[np.ndarray]:
    """The index rows of each part with its shard's number."""
    for number, rows in enumerate(at_once(lambda place: place.rows(tier), kept)):
        rows["shard"] = number
        yield rows
