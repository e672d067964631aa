"""Embeddings beside a dataset's shards: DIR/embeddings/NAME, and reading them. No torch.

00000.image.npy, 00000.text.npy …   float16 unit vectors (samples of the shard, dimension)
begun.json                          what is being made of what; becomes, last of all,
embeddings.json                     without it the folder is unfinished
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrain.base.arrays import read_array
from pretrain.dataset.manifest import Manifest, embeddings_folder

EMBEDDINGS_FILE = "embeddings.json"
BEGUN_FILE = "begun.json"
AGAIN = "make them again with `python -m data_prep embed MODEL DIR --out NAME`"
Kind = Literal["image", "text"]


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class EmbeddingsInfo:
    """What decides the embeddings' bytes."""

    model_fingerprint: str  # sha256 over the export's weights and config
    dataset_fingerprint: str  # sha256 of the manifest
    dimension: int
    image_px: int
    tier: str  # whose pictures were embedded
    caption: str | None  # None: each sample's first; a sample without it has zeros
    shard_samples: list[int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_info(path: Path) -> EmbeddingsInfo:
    """ValueError names a file that is none of ours."""
    try:
        return TypeAdapter(EmbeddingsInfo).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{path}: {error.errors()[0]['msg']}; remove its folder and {AGAIN}"
        ) from error


def shard_file(folder: Path, shard: int, kind: Kind) -> Path:
    """Where a shard's vectors lie."""
    return folder / f"{shard:05d}.{kind}.npy"


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Finished embeddings of a dataset, read shard by shard."""

    folder: Path
    info: EmbeddingsInfo

    def shards(self, kind: Kind) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """(first row, (rows, dimension) float16, mapped) of each shard in the index's order."""
        first = 0
        for shard, samples in enumerate(self.info.shard_samples):
            yield first, self._open(shard, kind, samples)
            first += samples

    def _open(self, shard: int, kind: Kind, samples: int) -> NDArray[np.float16]:
        path, wanted = shard_file(self.folder, shard, kind), (samples, self.info.dimension)
        try:
            vectors = read_array(path)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{path} is missing or damaged: remove its folder and {AGAIN}"
            ) from error
        if vectors.dtype != np.dtype("<f2") or vectors.shape != wanted:
            raise ValueError(
                f"{path} holds {vectors.dtype} {vectors.shape}, expected float16 {wanted}: remove "
                f"its folder and {AGAIN}"
            )
        return vectors


def open_embeddings(directory: Path, manifest: Manifest, name: str) -> Embeddings:
    """The embeddings that --embeddings NAME asks for.

    FileNotFoundError or ValueError where there are none, unfinished ones, or those of another
    state of the dataset.
    """
    folder = embeddings_folder(directory, name, "--embeddings")
    if not (folder / EMBEDDINGS_FILE).is_file():
        found = sorted(file.parent.name for file in folder.parent.glob(f"*/{EMBEDDINGS_FILE}"))
        state = "is unfinished" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"--embeddings={name!r}: {folder} {state}; {directory} has {found}: choose one of "
            f"them, or give `python -m data_prep embed MODEL {directory} --out {name}`"
        )
    info = read_info(folder / EMBEDDINGS_FILE)
    if info.dataset_fingerprint != manifest.fingerprint:
        raise ValueError(
            f"--embeddings={name!r}: {folder} was made from another version of {directory} "
            f"(fingerprint {info.dataset_fingerprint[:12]}, now {manifest.fingerprint[:12]}): "
            f"remove it and {AGAIN}"
        )
    return Embeddings(folder=folder, info=info)


def fitting_embeddings(
    directory: Path, manifest: Manifest, model_fingerprint: str, name: str | None
) -> Embeddings | None:
    """Embeddings by this model of this state of the dataset: those of a name, or the first found.

    None where no name is asked for and none fit. FileNotFoundError or ValueError where those of
    the name do not.
    """
    if name is not None:
        found = open_embeddings(directory, manifest, name)
        if found.info.model_fingerprint != model_fingerprint:
            raise ValueError(
                f"--embeddings={name!r}: {found.folder} was made by another model (fingerprint "
                f"{found.info.model_fingerprint[:12]}, asked for {model_fingerprint[:12]}): give "
                "that model, or leave --embeddings out"
            )
        return found
    for file in sorted((directory / "embeddings").glob(f"*/{EMBEDDINGS_FILE}")):
        info = read_info(file)
        if (info.model_fingerprint, info.dataset_fingerprint) == (
            model_fingerprint,
            manifest.fingerprint,
        ):
            return Embeddings(folder=file.parent, info=info)
    return None
