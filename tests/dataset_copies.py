"""Changes to a copy of a dataset directory, as damage or another writer would make them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.files import file_sha256
from pretrain.shard_format import INDEX_FILE, MANIFEST_FILE


def change_manifest(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = dataset / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def record_index(dataset: Path) -> None:
    """Make the manifest vouch for the index as it is now."""
    sha256 = file_sha256(dataset / "full" / INDEX_FILE)
    change_manifest(dataset, lambda m: m["tiers"]["full"].update(index_sha256=sha256))
