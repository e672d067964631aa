"""The launcher above a rank: where it is gone, the rank ends too."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil

from pretrain.base.faults import FAILED

_LAUNCHERS = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "torchrun",
    "deepspeed",
    "pretrain.base.launch",
)
# What torchrun and the deepspeed launcher set for their ranks.
_VARIABLES = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
_LOOK_S = 1.0
_GONE = b"the launcher is gone: this rank ends\n"
SAVE_S = 15.0  # for a checkpoint, where the other ranks are there too


def end_with_launcher() -> None:
    """Watch the launchers among this process's ancestors, and end this process with them.

    A launcher that is killed outright leaves its ranks training on, unseen, beside those of the
    next start. torchrun dies of SIGUSR1, the deepspeed launcher of SIGTERM: so the rank is asked to
    stop first, and killed when it does not. One whose launcher is gone already, which was killed
    while this process imported, ends at once. Nothing is watched in a process without a launcher.
    """
    launchers = [parent for parent in psutil.Process().parents() if _is_launcher(parent)]
    # Its children then belong to the first process. Another kind of launcher may be alive above.
    if not launchers and os.getppid() == 1 and any(name in os.environ for name in _VARIABLES):
        os.write(2, _GONE)
        os._exit(FAILED)
    if launchers:
        watch = threading.Thread(target=_watch, args=(launchers,), daemon=True, name="launcher")
        watch.start()


def _is_launcher(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(Path(word).name in _LAUNCHERS or "deepspeed.launcher" in word for word in words)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _watch(launchers: list[psutil.Process]) -> None:
    while all(map(_is_alive, launchers)):
        time.sleep(_LOOK_S)
    os.write(2, _GONE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_S)
    os.kill(os.getpid(), signal.SIGKILL)
