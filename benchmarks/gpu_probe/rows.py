"""Rows that outlive a killed process, and deadlines."""

import faulthandler
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

GRACE_S = 20.0  # for a call that Python cannot leave, before the whole process ends
Row = dict[str, Any]


class OverrunError(BaseException):
    """A step's time is over. No Exception, so that no library takes it for its own fault."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """OverrunError in the body after so many seconds, as soon as Python runs again.

    Python does not run inside a CUDA call that hangs: GRACE_S later the process says where it is
    and ends, and the steps that are left are for the next call.
    """

    def over(*_: object) -> None:
        raise OverrunError(f"the step's deadline of {seconds:.0f} s passed")

    signal.signal(signal.SIGALRM, over)
    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


class Rows:
    """A file of JSON lines; each is on the disk before the next is measured."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self.step = ""
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, **found: Any) -> None:
        """Append what was found, and show it."""
        row = {"step": self.step, "name": name, "device": self.device, **found}
        line = json.dumps(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)

    def measure(self, name: str, find: Callable[[], Row]) -> Row:
        """Write what `find` gives, or the error it ends with, and return that."""
        begin = time.perf_counter()
        try:
            found = find()
        except torch.OutOfMemoryError:
            found = {"error": "out of memory"}
        except OverrunError as error:
            self.write(name, error=str(error))
            raise
        except Exception as error:  # a kernel that refuses a shape, a compiler that fails
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        self.write(name, **found, seconds=round(time.perf_counter() - begin, 1))
        return found


def read(path: Path) -> list[Row]:
    """The newest row of each device and name, in the order of the file."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return list({(row["device"], row["step"], row["name"]): row for row in rows}.values())
