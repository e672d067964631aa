"""A function in a forked child that is bounded in time and memory, and what became of it."""

import faulthandler
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MEMORY_GIB = 2
_LINE = 4000  # characters; paths of files are in it
_OWN = re.compile(r'File "[^"]*/((?:pretrain|data_prep)/[^"]+)", line (\d+)')


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """kind: accepted, refused, LONG, TRACEBACK, HANG, MEMORY or CRASH."""

    kind: str
    told: str  # the line of a refusal
    place: str  # exception and innermost line of our own, of what is neither accepted nor refused
    log: str


def in_child(
    function: Callable[[], int], log: Path, *, limit_s: float, is_bounded: bool = True
) -> Outcome:
    """`function` is to return an exit status or to exit: 0 and 1 are accepted, 2 is refused.

    limit_s: of a core's time, so that other work on the machine makes no hang; and six times that
    of a clock, for what waits for ever.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        _run(function, log, limit_s, is_bounded)
    end, late = time.monotonic() + limit_s, time.monotonic() + 6 * limit_s
    peak, status = 0.0, None
    while status is None:
        time.sleep(0.005)
        ended, code, used = os.wait4(child, os.WNOHANG)
        if ended:
            status, peak = code, used.ru_maxrss / 2**20
        elif time.monotonic() > end and (_cpu_s(child) > limit_s or time.monotonic() > late):
            os.killpg(child, signal.SIGKILL)
            _, code, used = os.wait4(child, 0)
            status, peak = None, used.ru_maxrss / 2**20
            break
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started
    return _outcome(status, peak if is_bounded else 0, log.read_text(errors="replace"))


def _cpu_s(child: int) -> float:
    """Of the child and of those that it has waited for."""
    with suppress(psutil.NoSuchProcess):
        return sum(psutil.Process(child).cpu_times()[:4])
    return 0.0


def _run(function: Callable[[], int], log: Path, limit_s: float, is_bounded: bool) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.enable()
    if is_bounded:
        faulthandler.dump_traceback_later(limit_s - 0.5)
        most = (MEMORY_GIB + 4) * 2**30 + _virtual_bytes()  # so that the machine keeps its own
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    code = 70
    try:
        code = function()
    except SystemExit as ended:
        code = int(ended.code) if isinstance(ended.code, int) else 1 if ended.code else 0
        if isinstance(ended.code, str):
            print(ended.code)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _outcome(status: int | None, peak_gib: float, log: str) -> Outcome:
    lines = [line for line in log.splitlines() if line.startswith("error:")]
    own = _OWN.findall(log)
    at = ":".join(own[-1]) if own else "?"
    raised = re.findall(r"^([\w.]*(?:Error|Exception|Interrupt|Warning)\w*)\b", log, re.MULTILINE)
    place = f"{raised[-1] if raised else '?'} at {at}"
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None:
        own = _OWN.findall(log)
        kind, place = "HANG", f"hangs at {':'.join(own[0]) if own else '?'}"
    elif "MemoryError" in log or "bad_alloc" in log or peak_gib > MEMORY_GIB:
        kind, place = "MEMORY", f"{peak_gib:.1f} GiB, {place}"
    elif code < 0 or code > 2 or "panicked at" in log:
        kind, place = "CRASH", f"code {code}, {place}"
    elif "Traceback (most recent call last)" in log or (code == 2 and len(lines) != 1):
        kind = "TRACEBACK"
    elif code == 2 and len(lines[0]) > _LINE:
        kind, place = "LONG", f"a line of {len(lines[0])} characters: {lines[0][:100]}"
    else:
        kind = "refused" if code == 2 else "accepted"
    return Outcome(kind=kind, told=lines[-1] if lines else "", place=place, log=log)
