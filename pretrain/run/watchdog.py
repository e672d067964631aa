"""The watchdog of a rank: work that stands still ends, and leaves behind where it stood."""

import faulthandler
import os
import socket
import threading
import time
from pathlib import Path

from pretrain.base import progress
from pretrain.base.exit_codes import STALLED
from pretrain.base.faults import end_now
from pretrain.base.launch import say_ended
from pretrain.recipe.run_options import WatchdogOptions

# Where this thread cannot run either (the interpreter's lock is held, the disk hangs), a thread
# without Python speaks this long after.
_BACKSTOP_S = 60.0
# The first to end takes the others along: so all get the time to write their stacks.
_OTHERS_S = 3.0


def watch(options: WatchdogOptions, run_dir: Path, rank: int) -> None:
    """Start the watchdog of this process, until its end."""
    if options.timeout_s is not None:
        arguments = (options.timeout_s, run_dir, rank)
        threading.Thread(target=_watch, args=arguments, daemon=True, name="watchdog").start()


def _watch(timeout_s: float, run_dir: Path, rank: int) -> None:
    progress.doing("starting")
    while True:
        faulthandler.dump_traceback_later(timeout_s + _BACKSTOP_S, exit=True, file=2)
        what, seconds = progress.last()
        if seconds >= timeout_s:
            break
        time.sleep(min(timeout_s - seconds, 30.0))
    faulthandler.dump_traceback_later(_BACKSTOP_S, exit=True, file=2)
    say_ended(STALLED)
    line = (
        f"rank {rank} on {socket.gethostname()} stands still: no progress for {seconds:.0f} s "
        f"(watchdog.timeout_s={timeout_s:g}) while {what}"
    )
    if (read := progress.longest_read()) is not None:
        line += f"; reading {read[0]} since {read[1]:.0f} s"
    os.write(2, f"\n{line}\n".encode())
    path = _write_stacks(run_dir, rank, line)
    os.write(2, f"rank {rank}: the stacks of its threads are in {path}; it ends\n".encode())
    time.sleep(_OTHERS_S)
    end_now(STALLED)


def _write_stacks(run_dir: Path, rank: int, line: str) -> Path:
    path = run_dir / "stacks" / f"rank{rank}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        print(line + "\n", file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
    return path
