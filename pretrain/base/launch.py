"""A launcher with the ranks' exit code, and with signals that give them time to save.

python -m pretrain.launch torchrun --nproc_per_node 8 -m pretrain.train --config RECIPE.yaml

torchrun ends with 1 whatever its ranks ended with, and kills them half a minute after a signal;
the deepspeed launcher dies of one and leaves them. So signals to this command go to this machine's
ranks, past the launcher, and it ends with the code of the rank that ended first: both through a
folder of the machine's own disk. Where several machines each run this command, PRETRAIN_FIRST_CODE
may name a file that they share: the first of them to end otherwise than with 0 leaves its code
there, before the others are ended for it. PRETRAIN_REMOVE_AT_END may name a folder of this machine
that goes with the ranks. A rank whose launcher is gone ends too.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

import psutil

from pretrain.base.exit_codes import CONTINUE, FAILED, REFUSED

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
FOLDER_VARIABLE = "PRETRAIN_LAUNCH"
_ENDED = "ended"
_LAUNCHERS = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "torchrun",
    "deepspeed",
    "pretrain.launch",
    "pretrain.base.torchrun",
)
# What torchrun and the deepspeed launcher set for their ranks.
_VARIABLES = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
_LOOK_S = 1.0
_GONE = b"the launcher is gone: this rank ends\n"
_SAVE_S = 15.0  # for a checkpoint, where the other ranks are there too


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
        print("error: name it: python -m pretrain.launch torchrun …", file=sys.stderr)
        return REFUSED
    quiet = [sys.executable, "-m", "pretrain.base.torchrun"]
    if Path(command[0]).name == "torchrun":
        command = [*quiet, *command[1:]]
    elif command[1:3] == ["-m", "torch.distributed.run"]:
        command = [command[0], *quiet[1:], *command[3:]]
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
        deadline = time.monotonic() + _SAVE_S
        while _ranks(folder) and time.monotonic() < deadline:  # their launcher left without them
            time.sleep(0.1)
        for rank in _ranks(folder):
            with contextlib.suppress(psutil.Error):
                rank.kill()
        ended = read_exit_code(folder)
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
    for pid in _read_registered(folder):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(FOLDER_VARIABLE) == str(folder):
                found.append(process)
    return found


def register() -> None:
    """Tell `python -m pretrain.launch`, where it is above, that this process takes signals."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        with contextlib.suppress(OSError):  # the command is gone, and this rank will be soon
            (Path(folder) / f"rank-{os.getpid()}").touch()


def say_ended(code: int) -> None:
    """Leave an exit code for `python -m pretrain.launch`: the first of several counts."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        own = Path(folder) / f"code-{os.getpid()}"
        with contextlib.suppress(OSError):
            own.write_text(str(code))
            os.link(own, Path(folder) / _ENDED)  # whole, and never over another's


def read_exit_code(folder: Path) -> int | None:
    """The exit code that the first rank left; None where none did."""
    path = folder / _ENDED
    return int(path.read_text()) if path.is_file() else None


def _read_registered(folder: Path) -> set[int]:
    """Process ids of the ranks of this machine that take signals."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("rank-*")}


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
    time.sleep(_SAVE_S)
    os.kill(os.getpid(), signal.SIGKILL)
