"""Waiting for files of other nodes, which a network disk may show late."""

import os
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_AGAIN_S = 0.2


def await_seen(look: Callable[[], str | None], what: str, late_files_s: float) -> None:
    """Wait until `look` finds nothing that is not yet seen here.

    OSError where something is not, after so many seconds.
    """
    deadline = time.monotonic() + late_files_s
    while late := look():
        if time.monotonic() > deadline:
            raise OSError(
                f"{what}: {late} on {os.uname().nodename} after "
                f"checkpoint.late_files_s={late_files_s:g}: raise it where the disk is slower"
            )
        time.sleep(_LOOK_AGAIN_S)


def unseen(path: Path, size: int) -> str | None:
    """What is not yet seen of a file of so many bytes. Opens it: a stat may be answered from
    memory."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    return f"{path.name} has {found} of {size} bytes" if found < size else None
