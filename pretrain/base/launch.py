"""A launcher with the ranks' exit code, and with signals that give them time to save.

python -m pretrain.base.launch torchrun --nproc_per_node 8 -m pretrain.train --config RECIPE.yaml

torchrun ends with 1 whatever its ranks ended with, and kills them half a minute after a signal;
the deepspeed launcher dies of one and leaves them. So signals to this command go to this machine's
ranks, past the launcher, and it ends with the code of the rank that ended first. Where several
machines each run this command, PRETRAIN_FIRST_CODE may name a file that they share: the first of
them to end otherwise than with 0 leaves its code there, before the others are ended for it.
PRETRAIN_REMOVE_AT_END may name a folder of this machine that goes with the ranks.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import psutil

from pretrain.base.faults import CONTINUE, REFUSED
from pretrain.base.launched import FOLDER_VARIABLE, ended_with, registered
from pretrain.base.launcher import SAVE_S

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def main(command: list[str] | None = None) -> int:
    """Run a command that starts ranks; returns how they ended: 0, or the first one's code."""
    code = _run(sys.argv[1:] if command is None else command)
    if code and (shared := os.environ.get("PRETRAIN_FIRST_CODE")):
        with contextlib.suppress(OSError), Path(shared).open("x") as file:
            file.write(str(code))
    if of_the_job := os.environ.get("PRETRAIN_REMOVE_AT_END"):
        shutil.rmtree(of_the_job, ignore_errors=True)
    return code


def _run(command: list[str]) -> int:
    if not command:
        print("error: name it: python -m pretrain.base.launch torchrun …", file=sys.stderr)
        return REFUSED
    folder = Path(tempfile.mkdtemp(prefix="pretrain-launch-"))
    asked_to_stop = False
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        # A terminal that is gone is a request to stop like any other.
        asked = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        if ranks := _ranks(folder):
            for rank in ranks:
                with contextlib.suppress(psutil.Error):
                    rank.send_signal(asked)
        elif child is not None:  # no rank is there yet that could take it
            child.terminate()

    for number in _FORWARDED:
        signal.signal(number, forward)
    try:
        # Its own session: Ctrl-C at a terminal then comes to this process alone. Slurm may send a
        # signal to every process of a step, and torchrun would die of USR1.
        child = subprocess.Popen(
            command,
            env={**os.environ, FOLDER_VARIABLE: str(folder)},
            start_new_session=True,
            preexec_fn=_ignore_usr1,
        )
        if asked_to_stop:
            child.terminate()
        code = child.wait()
        deadline = time.monotonic() + SAVE_S
        while _ranks(folder) and time.monotonic() < deadline:  # their launcher left without them
            time.sleep(0.1)
        for rank in _ranks(folder):
            with contextlib.suppress(psutil.Error):
                rank.kill()
        ended = ended_with(folder)
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return REFUSED
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if code == 0:
        return 0
    if ended is not None:
        return ended
    if asked_to_stop:  # before training: nothing was lost
        return CONTINUE
    return code if code > 0 else 128 - code


def _ignore_usr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until a process takes it, as the ranks do


def _ranks(folder: Path) -> list[psutil.Process]:
    """The ranks of this command that are alive; a number may have become another process's."""
    found = []
    for pid in registered(folder):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(FOLDER_VARIABLE) == str(folder):
                found.append(process)
    return found


if __name__ == "__main__":
    sys.exit(main())
