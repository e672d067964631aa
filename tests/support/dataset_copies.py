"""Changes to a copy of a dataset directory, as damage or another writer would make them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.base.files import file_sha256
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from pretrain.dataset.sample_weights import write_weights


def change_manifest(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = dataset / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def record_index(dataset: Path) -> None:
    """Make the manifest vouch for the index as it is now."""
    sha256 = file_sha256(dataset / "full" / INDEX_FILE)
    change_manifest(dataset, lambda m: m["tiers"]["full"].update(index_sha256=sha256))


def damage(dataset: Path, rows: list[int], member: str = "jpg") -> None:
    """Flip a byte in the middle of a member of some samples."""
    index = np.load(dataset / "full" / INDEX_FILE)
    for row in rows:
        path = dataset / "full" / f"{index[row]['shard']:05d}.tar"
        content = bytearray(path.read_bytes())
        content[int(index[row][member]["offset"]) + int(index[row][member]["size"]) // 2] ^= 0xFF
        path.write_bytes(content)


def keep_weights(dataset: Path, name: str, values: np.ndarray) -> Path:
    """Make weights the dataset's."""
    return write_weights(dataset, name, read_manifest(dataset), values)
