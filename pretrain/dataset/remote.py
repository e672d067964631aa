"""Files that lie far away, by any address that fsspec knows."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

_BLOCK_BYTES = 4 << 20


def read_all(url: str) -> bytes:
    """A small file; OSError says why it cannot be read."""
    with _opened(url) as file:
        return file.read()


def copy_checked(
    url: str,
    target: Path,
    digest: str,
    *,
    size: int | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Copy a file over the beginning of `target`, or of a new one; OSError where that fails or its
    sha256 is another. Ends early, without a word, when it is `given_up`.

    size: its bytes, where they are known: a web server is then not asked for them first."""
    found, came = sha256(), 0
    target.touch()
    with _opened(url, size) as theirs, target.open("r+b") as ours:
        while block := theirs.read(_BLOCK_BYTES):
            if given_up():
                return
            found.update(block)
            ours.write(block)
            came += len(block)
        if given_up():
            return
        ours.truncate()
        ours.flush()
        os.fsync(ours.fileno())  # its name, which comes next, must not outlive a power cut alone
    if found.hexdigest() != digest:
        raise OSError(
            f"{came:,} bytes with sha256 {found.hexdigest()[:12]}… came, the manifest says "
            f"{digest[:12]}…"
        )


@contextmanager
def _opened(url: str, size: int | None = None) -> Iterator[BinaryIO]:
    """Every file system has failures of its own: all become an OSError."""
    import fsspec  # most commands read nothing from afar

    try:
        system, path = fsspec.url_to_fs(url)
        # A plain web server answers no request for a part of a file.
        how = {"block_size": 0, "size": size} if "http" in system.protocol else {}
        with system.open(path, "rb", **how) as file:
            yield file
    except Exception as error:
        reason = error.__cause__ or error
        raise OSError(f"{type(reason).__name__}: {reason}") from error
