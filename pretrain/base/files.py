"""Durable files: whole under their name or not there, whenever the machine stops."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

_FULL, _NO_SPACE = (errno.ENOSPC, errno.EDQUOT), "no space left"
_ASIDE = re.compile(r"(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.part")
_QUIET_S = 24 * 3600.0  # far above any difference of clocks, and any work between two writes
_swept: set[tuple[int, Path]] = set()  # (process, folder)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_durably(source: Path, path: Path) -> None:
    """Rename a synced file, and sync the folder so that the name outlives a power cut."""
    source.replace(path)
    sync(path.parent)


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, which gets that name, synced, when the body ends without a fault.

    The body may close it, or write to the path that is its `name`. No link is followed, and two
    processes that write the same file both end well. Whatever raises removes what was written;
    OSError names the path where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = aside_name(path)
    try:
        with part.open("x+b") as file:
            yield file
        sync(part)
        rename_durably(part, path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            f"{path}: {why_not_written(error, path.parent)}: make room, or choose another place, "
            "and give the same command again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def aside_name(path: Path) -> Path:
    """A new name, of this process alone, for what is written before it is `path`.

    The first of a process in a folder removes what ended processes left there.
    """
    if (os.getpid(), path.parent) not in _swept:
        _swept.add((os.getpid(), path.parent))
        remove_left(path.parent)
    return path.with_name(f"{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def final_name(name: str) -> str:
    """The name that a file is to get that is written aside; any other's own."""
    found = _ASIDE.fullmatch(name)
    return found["name"] if found else name


def remove_left(folder: Path) -> None:
    """Remove the files and folders that were written aside here by processes that have ended."""
    with os.scandir(folder) as entries:
        found = [(Path(entry.path), _ASIDE.fullmatch(entry.name)) for entry in entries]
    for part, told in found:
        if told is None:
            continue
        with suppress(OSError):  # another process removes it, or it is another user's
            if told["machine"] == _machine():
                is_left = not _lives(int(told["pid"]))
            else:  # of a folder the newest of what is in it: its own time stands still
                inside = part.rglob("*") if part.is_dir() and not part.is_symlink() else ()
                newest = max(one.lstat().st_mtime for one in (part, *inside))
                is_left = time.time() - newest > _QUIET_S
            if is_left and part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            elif is_left:
                part.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


@cache
def _machine() -> str:
    """Within it, a process is known by its number: containers of one host have their own."""
    space = Path("/proc/self/ns/pid").stat().st_ino
    return f"{zlib.crc32(f'{socket.gethostname()} {space}'.encode()):08x}"


def write_durably(path: Path, content: bytes | str) -> None:
    """Write a file aside (text as UTF-8), sync it, and give it its name."""
    with aside(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_tensors(
    path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file aside, sync it, and give it its name. OSError if that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # imports torch, which most users of this module lack

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with aside(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        try:
            save_file(whole, str(file.name), metadata=metadata)
        except SafetensorError as error:  # it need not name a full disk
            raise OSError(f"{path}: {why_not_written(error, path.parent)}") from error
        # The library makes a file of its own, for its owner alone, and a lab shares its models.
        Path(file.name).chmod(mode)


def why_not_written(error: Exception, folder: Path) -> str:
    """One line of why a write into a folder failed; a library's error need not name a full disk."""
    words = " ".join(str(error).split())
    free = shutil.disk_usage(folder).free
    full = getattr(error, "errno", None) in _FULL or free < 1 << 20
    if not full or _NO_SPACE in words:
        return words
    return f"{_NO_SPACE} ({free / 1e6:.1f} MB free in {folder}): {words}"


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
