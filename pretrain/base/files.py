"""Durable files: whole under their name or not there, whenever the machine stops."""

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ASIDE_SUFFIX = ".part"


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(path: Path) -> Path:
    """The name under which a file is written before it gets its own."""
    return path.with_name(path.name + ASIDE_SUFFIX)


def rename_durably(source: Path, path: Path) -> None:
    """Rename a synced file, and sync the folder so that the name outlives a power cut."""
    source.replace(path)
    sync(path.parent)


def write_durably(path: Path, content: bytes | str) -> None:
    """Write a file aside (text as UTF-8), sync it, and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = aside(path)
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(part, path)


def write_tensors(
    path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file aside, sync it, and give it its name."""
    from safetensors.torch import save_file  # imports torch, which most users of this module lack

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, str(aside(path)), metadata=metadata)
    # The library makes the file for its owner alone, and a lab shares its models.
    mask = os.umask(0)
    os.umask(mask)
    aside(path).chmod(0o666 & ~mask)
    sync(aside(path))
    rename_durably(aside(path), path)


def why_not_written(error: Exception, folder: Path) -> str:
    """One line of why a write into a folder failed; a library's error need not name a full disk."""
    free = shutil.disk_usage(folder).free
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or free < 1 << 20
    space = f"no space left ({free / 1e6:.1f} MB free in {folder}): " if full else ""
    return space + " ".join(str(error).split())


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
