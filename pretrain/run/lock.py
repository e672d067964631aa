"""The lock of a run folder: one process tree owns it at a time."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import TextIO

LOCK_FILE = "lock"
_PATIENCE_S = 4.0


class RunLock:
    """Holds a run folder until the process ends, however it ends: the kernel lets go."""

    def __init__(self, run_dir: Path) -> None:
        """RuntimeError where another process holds it, with who that is; OSError where the file
        system has no locks. A rank whose launcher was killed needs a moment to end: so tries for
        some seconds."""
        path = run_dir / LOCK_FILE
        self._file: TextIO = path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    self._file.close()
                    raise RuntimeError(
                        f"run_dir={run_dir} is being trained by another run ({_owner(path)}): wait "
                        "for it, end it, or choose another run_dir"
                    ) from error
                time.sleep(0.2)
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process have the folder."""
        self._file.close()


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError):
        return "unknown process"
