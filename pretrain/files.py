"""Durable files: whole under their name or not there, whenever the machine stops."""

import hashlib
import os
from pathlib import Path

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


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
