"""A dataset's small files brought from afar; its shards follow, one by one, when training asks."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_prep.publish import ADDED
from data_prep.sources.far import at_once
from data_prep.store import Store
from pretrain.base.files import aside, file_sha256, write_durably
from pretrain.dataset.far_files import copy, read_all
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, path_inside
from pretrain.dataset.tars import is_hidden


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Where a dataset lies"""

    url: str
    """The dataset directory's address for fsspec: https://, s3://, gs://, hf://, or a path."""
    tiers: str | None = None
    """Image tiers whose index is brought, as `160,full`; by default all."""
    also: list[str] = field(default_factory=list)
    """What was added to the dataset and is brought too: files, or folders where the address can be
    listed, e.g. weights, weights/dedup.npy, captions/long, embeddings/clip. Repeat it for several.
    """


def fetch(directory: Path, options: FetchOptions) -> str:
    """Bring manifest, tokenizer, token counts and indexes; the manifest last. Returns what to do.

    What is there already and right is not brought again. ValueError or OSError say what is wrong.
    """
    url = options.url.rstrip("/")
    try:
        text = read_all(f"{url}/{MANIFEST_FILE}")
    except OSError as error:
        raise OSError(
            f"{url}/{MANIFEST_FILE} could not be read ({error}): --url names a dataset directory"
        ) from error
    manifest = Manifest.from_json(text)
    tiers = list(manifest.tiers) if options.tiers is None else options.tiers.split(",")
    if unknown := sorted(set(tiers) - manifest.tiers.keys()):
        raise ValueError(
            f"--tiers {','.join(unknown)}: {url} has image tiers {sorted(manifest.tiers)}"
        )
    if in_place := [name for name in tiers if manifest.tiers[name].in_place]:
        raise ValueError(
            f"--url {url}: pictures of its image tiers {in_place} lie in tars beside it, which are "
            "not fetched: copy them and the dataset's folder by hand"
        )
    digests = {one.file: one.sha256 for one in (manifest.tokenizer, manifest.token_counts)}
    for name in tiers:
        digests[f"{name}/{INDEX_FILE}"] = manifest.tiers[name].index_sha256
    size = 0
    for name, digest in digests.items():
        path = path_inside(directory, name, "file")
        if not path.is_file() or file_sha256(path) != digest:
            try:
                with aside(path) as file:
                    copy(f"{url}/{name}", Path(file.name), sha256=digest)
            except OSError as error:
                raise OSError(f"{url}/{name} could not be copied to {path}: {error}") from error
        size += path.stat().st_size
    size += _bring_added(Store(address=url, folder=directory), options.also)
    write_durably(directory / MANIFEST_FILE, text)
    return (
        f"{directory}: {manifest.samples:,} samples, tiers {', '.join(tiers)}, "
        f"{size / 1e6:,.1f} MB without shards; train with "
        f"--data.train {directory} --data.shards.url {url} "
        "--data.shards.cache FOLDER_ON_THE_NODES_OWN_DISK"
    )


def _bring_added(store: Store, asked: list[str]) -> int:
    """Files, and what lies in folders; returns their bytes. FileNotFoundError names what is not
    there."""
    names: list[str] = []
    for one in asked:
        path_inside(store.folder, one, "--also")
        if one.partition("/")[0] not in ADDED:
            raise ValueError(f"--also {one}: what is added to a dataset lies in {', '.join(ADDED)}")
        found = [name for name in store.sizes(one) if not is_hidden(name)]
        if found == [one]:
            found = []  # a file
        names += found or [one]
        if not found and one.endswith(".npy"):
            names.append(str(PurePosixPath(one).with_suffix(".json")))  # its digest
    for name, there in zip(names, at_once(store.bring, names), strict=True):
        if not there:
            raise FileNotFoundError(f"--also: {store.address}/{name} is not there; change it")
    return sum((store.folder / name).stat().st_size for name in names)
