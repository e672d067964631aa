"""A dataset directory, or what was added to one, sent to an object store."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.store import Store, at_once
from pretrain.base.progress import Bar
from pretrain.dataset.far_files import read_all
from pretrain.dataset.manifest import MANIFEST_FILE, Manifest, read_manifest
from pretrain.dataset.tars import is_hidden

_LEFT = ("hashes",)  # of pictures: made anew where they are needed
_SHARD_SUFFIX = ".tar"


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Where a dataset is to lie"""

    url: str
    """The dataset directory's address for fsspec: s3://BUCKET/FOLDER, gs://…"""
    overwrite: bool = False
    """Send it over another dataset that lies there; otherwise that is refused."""


def publish(directory: Path, options: PublishOptions) -> str:
    """Send what is not there: shards, indexes, weights, captions, embeddings; the manifest last.

    Killed at any time, the same command goes on. ValueError or OSError say what is wrong.
    """
    manifest = read_manifest(directory)
    if in_place := [name for name, tier in manifest.tiers.items() if tier.in_place]:
        raise ValueError(
            f"{directory}: pictures of its image tiers {in_place} lie in tars beside it, which are "
            "not sent; copy them and this folder by hand"
        )
    store = Store(address=options.url.rstrip("/"), folder=directory)
    there = store.sizes()
    if MANIFEST_FILE in there and not options.overwrite:
        _refuse_other(store, manifest)
    names = [
        path.relative_to(directory).as_posix()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    small = [
        name
        for name in names
        if not is_hidden(name)
        and name.partition("/")[0] not in _LEFT
        and not name.endswith(_SHARD_SUFFIX)
        and name != MANIFEST_FILE
    ]
    shards = {one.file: one.bytes for tier in manifest.tiers.values() for one in tier.shards}
    here = [name for name in shards if name in names]
    missing = [name for name in shards if name not in names and there.get(name) != shards[name]]
    if missing:
        raise FileNotFoundError(
            f"{directory / missing[0]}, one of {len(missing):,} shards, is neither here nor at "
            "--url: copy it here, and give the same command again"
        )
    todo = [name for name in here if there.get(name) != shards[name]]
    if MANIFEST_FILE in there and todo:
        store.remove([MANIFEST_FILE])  # until all is there
    sent = at_once(store.send, [*todo, *small])
    for _ in Bar(sent, total=len(todo) + len(small), unit="files", what="publish"):
        pass
    store.send(MANIFEST_FILE)
    return (
        f"{options.url}: {manifest.samples:,} samples; sent {len(todo):,} of {len(shards):,} "
        f"shards and {len(small) + 1:,} small files"
    )


def _refuse_other(store: Store, manifest: Manifest) -> None:
    """FileExistsError where another dataset lies there."""
    found = Manifest.from_json(read_all(f"{store.address}/{MANIFEST_FILE}"))
    if found.fingerprint != manifest.fingerprint:
        raise FileExistsError(
            f"--url {store.address} holds another dataset ({found.samples:,} samples): choose "
            "another address, or add --overwrite"
        )
