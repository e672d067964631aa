"""Several datasets as one, without a copy of a picture; and weights that mix them by share."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build.tasks import DOWNLOADS
from data_prep.build.writer import array_file, write_index, write_manifest
from data_prep.publish import PublishOptions, begin, publish
from data_prep.sources.far import at_once
from data_prep.sources.links import LinkCounts
from data_prep.store import Store
from pretrain.base.arrays import read_array
from pretrain.base.checks import check_local, check_positive
from pretrain.base.files import file_sha256, sync, write_durably
from pretrain.base.lock import locked
from pretrain.base.progress import Bar
from pretrain.dataset.manifest import (
    COPY_AGAIN,
    INDEX_FILE,
    MANIFEST_FILE,
    SHARD_FILE,
    TOKEN_COUNTS_FILE,
    Manifest,
    ShardInfo,
    TierInfo,
    TokenCountsInfo,
    index_dtype,
    path_inside,
    read_manifest,
    read_token_counts,
)
from pretrain.dataset.sample_weights import write_weights

_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """What is joined"""

    source: list[Path] = field(default_factory=list)
    """A finished dataset directory; repeat it, at least twice. All have the same tokenizer,
    captions and image tiers."""
    share: list[float] = field(default_factory=list)
    """How much of what is shown is of each source, in their order, in any unit; repeat it. Goes to
    weights/mix.npy, in which a source's samples weigh alike."""
    source_url: list[str] = field(default_factory=list)
    """Address of the folder on an object store where a source's shards lie, in the order of the
    sources; repeat it. The sources then are what `data_prep fetch` brought."""
    url: str | None = None
    """Address of the folder, on the same store, to which the shards of all are copied there, and
    the joined dataset's small files are sent. Goes with --source-url."""
    target: int | None = None
    """Samples shown an epoch by these weights; by default as many as all sources have."""

    def __post_init__(self) -> None:
        check_positive({"--target": self.target})
        if self.target is not None and not self.share:
            raise ValueError(
                f"--target={self.target}: does nothing without --share, by which the sources are "
                "weighted; give one for each source, or leave --target out"
            )
        if len({source.resolve() for source in self.source}) < len(self.source):
            raise ValueError(
                f"--source {list(map(str, self.source))}: the same source is given twice"
            )
        if len(self.source) < 2:
            raise ValueError(f"--source {list(map(str, self.source))}: give at least two")
        if len(self.source_url) != (len(self.source) if self.url is not None else 0):
            raise ValueError(
                f"--source-url {self.source_url}, --url {self.url}: give one --source-url for each "
                f"of the {len(self.source)} sources, and --url, or none of them"
            )
        if self.share and (
            len(self.share) != len(self.source) or min(self.share) < 0 or not any(self.share)
        ):
            raise ValueError(
                f"--share {self.share}: one number of at least 0 for each of the "
                f"{len(self.source)} sources, one of them positive"
            )


def join(out: Path, options: JoinOptions) -> str:
    """Make `out` of all samples of the sources, in order; the manifest last. Returns a summary.

    Shards are hard links where the file system allows it, else copies. A finished directory of
    these sources stays as it is, but for the weights of other shares; any other is refused. An
    unfinished one is made anew. ValueError or OSError name what does not fit.
    """
    check_local({"out": out})
    manifests = [read_manifest(source) for source in options.source]
    _check_alike(options.source, manifests)
    with locked(out, patience_s=0, keep=False):
        if not (out / MANIFEST_FILE).exists():
            _write(out, options, manifests)
        else:
            found = read_manifest(out)
            if found.provenance.get("joined") != _sources(options, manifests):
                raise FileExistsError(
                    f"{out} is a finished dataset of other sources: choose another directory"
                )
            print(f"note: {out} is finished", file=sys.stderr)
            if options.share:
                _write_mix(out, options, manifests, found)
    return _summary(out, options, manifests)


def _sources(options: JoinOptions, manifests: list[Manifest]) -> list[dict[str, Any]]:
    """What was joined, for the manifest."""
    return [
        {"name": source.resolve().name, "samples": its.samples, "sha256": its.fingerprint}
        for source, its in zip(options.source, manifests, strict=True)
    ]


def _write(out: Path, options: JoinOptions, manifests: list[Manifest]) -> None:
    """All files of the joined dataset."""
    first = manifests[0]
    tiers = {}
    for name in first.tiers:
        if options.url is None:
            shards = _link_shards(out, name, options.source, manifests)
        else:
            shards = _number_shards(name, manifests)
        index_sha256 = _join_index(out, name, options.source, manifests)
        tiers[name] = replace(first.tiers[name], shards=shards, index_sha256=index_sha256)
    name = first.tokenizer.file
    write_durably(out / name, path_inside(options.source[0], name, "tokenizer.file").read_bytes())
    rejected: Counter[str] = Counter()
    for manifest in manifests:
        rejected.update(manifest.rejected)
    joined = replace(
        first,
        samples=sum(manifest.samples for manifest in manifests),
        tiers=tiers,
        rejected=dict(rejected),
        token_counts=_join_counts(out, options.source, manifests),
        provenance={
            "joined": _sources(options, manifests),
            **_join_downloads(manifests),
        },
    )
    if options.share:
        _write_mix(out, options, manifests, joined)
    if options.url is not None:
        _copy_there(out, options, manifests, joined)
    write_manifest(out, joined)
    if options.url is not None:
        publish(out, PublishOptions(url=options.url))


def _number_shards(tier: str, manifests: list[Manifest]) -> list[ShardInfo]:
    """All shards of a tier under numbers of their own."""
    shards = [shard for manifest in manifests for shard in manifest.tiers[tier].shards]
    return [
        replace(shard, file=f"{tier}/{SHARD_FILE.format(shard=number)}")
        for number, shard in enumerate(shards)
    ]


def _copy_there(
    out: Path, options: JoinOptions, manifests: list[Manifest], joined: Manifest
) -> None:
    """Copy the shards within the store, those that are not there."""
    assert options.url is not None
    store = Store(address=options.url.rstrip("/"), folder=out)
    there, _ = begin(store, joined, overwrite=False)
    addresses = [
        f"{address.rstrip('/')}/{shard.file}"
        for tier in joined.tiers
        for address, manifest in zip(options.source_url, manifests, strict=True)
        for shard in manifest.tiers[tier].shards
    ]
    shards = [shard for tier in joined.tiers.values() for shard in tier.shards]
    pairs = list(zip(addresses, shards, strict=True))
    todo = [(address, one.file) for address, one in pairs if there.get(one.file) != one.bytes]
    copied = at_once(lambda pair: store.take(*pair), todo)
    for _ in Bar(copied, total=len(todo), unit="shards", what="copy"):
        pass
    there = {k: v for tier in joined.tiers for k, v in store.sizes(tier).items()}
    for address, shard in pairs:
        if there.get(shard.file) != shard.bytes:
            raise ValueError(f"{address} is missing or has another size: {COPY_AGAIN}")


def _summary(out: Path, options: JoinOptions, manifests: list[Manifest]) -> str:
    samples = sum(manifest.samples for manifest in manifests)
    lines = [f"{out}: {samples:,} samples of {len(manifests)} datasets"]
    total = sum(options.share) or 1.0
    for place, (source, manifest) in enumerate(zip(options.source, manifests, strict=True)):
        shown = f", {options.share[place] / total:.1%} of what is shown" if options.share else ""
        lines.append(f"{source}: {manifest.samples:,} samples{shown}")
    if options.share:
        lines.append(f"train by them with --data.train {out} --data.weights mix")
    return "\n".join(lines)


def _check_alike(sources: list[Path], manifests: list[Manifest]) -> None:
    """ValueError where a source cannot be joined to the first one."""

    def kind(tier: TierInfo) -> tuple[int | None, int | None]:
        return tier.shortest_px, tier.jpeg_quality

    first = manifests[0]
    for source, its in zip(sources, manifests, strict=True):
        if any(tier.in_place for tier in its.tiers.values()):
            raise ValueError(
                f"--source {source} has its pictures in place, in tars, which are not joined: "
                "index the tars of all together, or build the datasets"
            )
    for source, its in zip(sources[1:], manifests[1:], strict=True):
        differing = {
            "tokenizer": (first.tokenizer, its.tokenizer),
            "captions": (first.captions, its.captions),
            "image tiers": (
                {name: kind(tier) for name, tier in first.tiers.items()},
                {name: kind(tier) for name, tier in its.tiers.items()},
            ),
            "text tier": (first.text_tier, its.text_tier),
            "tagger": (first.tagger, its.tagger),
        }
        for what, (wanted, found) in differing.items():
            if wanted != found:
                raise ValueError(
                    f"{source} has {what} {found}, {sources[0]} has {wanted}: build it again with "
                    "the same options (--tokenizer takes the other one's file)"
                )


def _link_shards(
    out: Path, tier: str, sources: list[Path], manifests: list[Manifest]
) -> list[ShardInfo]:
    """All shards of a tier under numbers of their own."""
    path_inside(out, f"{tier}/{INDEX_FILE}", "tiers")
    (out / tier).mkdir(exist_ok=True)
    found: list[ShardInfo] = []
    for source, manifest in zip(sources, manifests, strict=True):
        for shard in manifest.tiers[tier].shards:
            name = f"{tier}/{SHARD_FILE.format(shard=len(found))}"
            theirs = path_inside(source, shard.file, f"tiers.{tier}.shards")
            if not theirs.is_file() or theirs.stat().st_size != shard.bytes:
                raise ValueError(f"{theirs} is missing or has another size: {COPY_AGAIN}")
            (out / name).unlink(missing_ok=True)
            try:
                os.link(theirs, out / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(theirs, out / name)
                sync(out / name)
            found.append(replace(shard, file=name))
    sync(out / tier)
    return found


def _join_index(out: Path, tier: str, sources: list[Path], manifests: list[Manifest]) -> str:
    """All rows of a tier, with their shards' new numbers, block by block; returns the sha256."""

    def blocks() -> Iterator[np.ndarray]:
        shards = 0
        for source, manifest in zip(sources, manifests, strict=True):
            theirs = path_inside(source, f"{tier}/{INDEX_FILE}", "tiers")
            if file_sha256(theirs) != manifest.tiers[tier].index_sha256:
                raise ValueError(f"{theirs}: its sha256 is not the manifest's; {COPY_AGAIN}")
            rows = read_array(theirs)
            for first in range(0, len(rows), _BLOCK_ROWS):
                block = rows[first : first + _BLOCK_ROWS].copy()
                block["shard"] += shards
                yield block
            shards += len(manifest.tiers[tier].shards)

    samples = sum(manifest.samples for manifest in manifests)
    dtype = index_dtype(len(manifests[0].captions))
    return write_index(out / tier / INDEX_FILE, dtype, samples, blocks())


def _join_downloads(manifests: list[Manifest]) -> dict[str, Any]:
    """What became of the links of those sources that img2dataset fetched, where there are some."""
    found = [its.provenance[DOWNLOADS] for its in manifests if DOWNLOADS in its.provenance]
    total = LinkCounts()
    for plain in found:
        total.add(LinkCounts(**{**plain, "failed": Counter(plain["failed"])}))
    return {DOWNLOADS: total.plain()} if found else {}


def _join_counts(out: Path, sources: list[Path], manifests: list[Manifest]) -> TokenCountsInfo:
    """The counts of token ids added up."""
    counts = [read_token_counts(*pair) for pair in zip(sources, manifests, strict=True)]
    total = np.sum(counts, axis=0, dtype=np.uint64).astype("<u8")
    write_durably(out / TOKEN_COUNTS_FILE, array_file(total))
    digest = file_sha256(out / TOKEN_COUNTS_FILE)
    return TokenCountsInfo(file=TOKEN_COUNTS_FILE, sha256=digest)


def _write_mix(
    out: Path, options: JoinOptions, manifests: list[Manifest], joined: Manifest
) -> None:
    """weights/mix.npy: of each source its share of the target, spread evenly over its samples."""
    sizes = np.asarray([manifest.samples for manifest in manifests])
    shares = np.asarray(options.share, np.float64) / sum(options.share)
    each = shares * (options.target or sizes.sum()) / sizes
    write_weights(out, "mix", joined, np.repeat(each, sizes))
