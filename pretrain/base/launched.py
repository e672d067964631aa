"""What the ranks tell the command that started their launcher: who they are, and how they ended.

A launcher between them keeps a rank's exit code for itself, and ends ranks half a minute after a
signal. So both go past it, through a folder of the machine's own disk.
"""

import contextlib
import os
from pathlib import Path

FOLDER_VARIABLE = "PRETRAIN_LAUNCH"
_ENDED = "ended"


def register() -> None:
    """Tell `python -m pretrain.base.launch`, where it is above, that this process takes signals."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        with contextlib.suppress(OSError):  # the command is gone, and this rank will be soon
            (Path(folder) / f"rank-{os.getpid()}").touch()


def say_ended(code: int) -> None:
    """Leave an exit code for `python -m pretrain.base.launch`: the first of several counts."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        own = Path(folder) / f"code-{os.getpid()}"
        with contextlib.suppress(OSError):
            own.write_text(str(code))
            os.link(own, Path(folder) / _ENDED)  # whole, and never over another's


def ended_with(folder: Path) -> int | None:
    """The exit code that the first rank left; None where none did."""
    path = folder / _ENDED
    return int(path.read_text()) if path.is_file() else None


def registered(folder: Path) -> set[int]:
    """Process ids of the ranks of this machine that take signals."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("rank-*")}
