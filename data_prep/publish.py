"""A dataset directory, or what was added to one, sent to an object store."""

import json
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.far import at_once
from data_prep.store import Store
from pretrain.base.progress import Bar
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, read_manifest

ADDED = ("weights", "concepts", "captions", "embeddings")  # folders beside the tiers
_MARK_FILE = ".publishing.json"  # there, until the manifest is: which dataset is under way


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Where a dataset is to lie"""

    url: str
    """The dataset directory's address for fsspec: s3://BUCKET/FOLDER, gs://…"""
    overwrite: bool = False
    """Replace another dataset at that address; otherwise it is refused."""


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
    sizes = {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    shards = {one.file: one.bytes for tier in manifest.tiers.values() for one in tier.shards}
    there, is_whole = begin(store, manifest, overwrite=options.overwrite)
    missing = [name for name in shards if name not in sizes and there.get(name) != shards[name]]
    if missing:
        raise FileNotFoundError(
            f"{directory / missing[0]}, one of {len(missing):,} shards, is neither here nor at "
            "--url: copy it here, and give the same command again"
        )
    own = {*shards, manifest.tokenizer.file, manifest.token_counts.file}
    own |= {f"{tier}/{INDEX_FILE}" for tier in manifest.tiers}  # whose digests the manifest has
    todo = [name for name in own if name in sizes and there.get(name) != sizes[name]]
    todo += [name for name in _added(sizes, own) if not _is_there(store, name, sizes, there)]
    for _ in Bar(at_once(store.send, todo), total=len(todo), unit="files", what="publish"):
        pass
    if not is_whole:
        store.send(MANIFEST_FILE)
        store.remove([_MARK_FILE])
    sent = sum(name in shards for name in todo)
    return (
        f"{options.url}: {manifest.samples:,} samples; sent {sent:,} of {len(shards):,} shards "
        f"and {len(todo) - sent:,} other files"
    )


def begin(store: Store, manifest: Manifest, *, overwrite: bool) -> tuple[dict[str, int], bool]:
    """Files there that belong to this very dataset, with their bytes; and whether all of it is
    there. What else lies there is no dataset any more, as this one is under way.

    FileExistsError where another dataset lies there and is not to be replaced.
    """
    text, mark = store.read(MANIFEST_FILE), store.read(_MARK_FILE)
    if text is not None:
        found = Manifest.from_json(text)
        if found.fingerprint == manifest.fingerprint:
            return store.sizes(), True
        if not overwrite:
            raise FileExistsError(
                f"--url {store.address} holds another dataset ({found.samples:,} samples): choose "
                "another address, or add --overwrite"
            )
        store.remove([MANIFEST_FILE])  # until all is there
    told = json.dumps({"dataset": manifest.fingerprint}).encode()
    if mark == told and text is None:
        return store.sizes(), False
    store.write(_MARK_FILE, told)
    return {}, False


def _added(sizes: dict[str, int], own: set[str]) -> list[str]:
    """What was added to the dataset: weights, concepts, captions, embeddings."""
    return [name for name in sizes if name not in own and name.partition("/")[0] in ADDED]


def _is_there(store: Store, name: str, sizes: dict[str, int], there: dict[str, int]) -> bool:
    """Whether a file that was added is there as it is here: by its size, and by the JSON beside it,
    which has its digest."""
    if there.get(name) != sizes[name]:
        return False
    if name.endswith(".json"):
        return store.read(name) == (store.folder / name).read_bytes()
    folder, stem = name.rpartition("/")[0], name.rpartition(".")[0]
    beside = [f"{stem}.json"] if f"{stem}.json" in sizes else []
    beside = beside or [
        one for one in sizes if one.startswith(f"{folder}/") and one.endswith(".json")
    ]
    return bool(beside) and all(_is_there(store, one, sizes, there) for one in beside)
