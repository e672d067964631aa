"""Faults of what was asked for, told to the user on one line."""

import atexit
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pretrain.base.exit_codes import FAILED, REFUSED
from pretrain.base.launch import say_ended

# A launcher ends all ranks when the first one leaves: so the silent ones let the speaker speak.
_SPEAKER_S = 3.0
_LINE = 2000  # characters of an error's line


class StoppedError(ValueError):
    """What all ranks found together, at the same place: one of them says it, with the remedy."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line: a value from a file may be a book, or move the cursor."""
    line = " ".join(str(error).split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    cut = len(line) - _LINE
    half = _LINE // 2
    return line if cut <= 0 else f"{line[:half]} … {cut:,} characters … {line[-half:]}"


@contextmanager
def one_line_faults(*, known_to_all: bool = False) -> Iterator[None]:
    """A ValueError or OSError inside ends the program with code 2 and one `error:` line.

    For the checks before a command starts; past them a fault is a defect, and its traceback is
    wanted (here too, with PRETRAIN_TRACEBACK=1). One rank of a machine speaks, with the machine's
    name where it is not the main one; known_to_all: the ranks have agreed, the main one speaks.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("PRETRAIN_TRACEBACK"):
            traceback.print_exc()
        rank, local = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
        if rank == "0":
            print("error:", one_line(error), file=sys.stderr)
        elif local == "0" and not known_to_all:
            print(f"error on {os.uname().nodename}:", one_line(error), file=sys.stderr)
        else:
            time.sleep(_SPEAKER_S)
        leave(REFUSED)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """A fault inside ends this process: with its traceback, or, where all ranks stop alike, with
    one line of the main rank. Never in order: that would wait for ranks that wait for this one."""
    try:
        yield
    except StoppedError as error:
        if os.environ.get("RANK", "0") == "0":  # on a line of its own, below a progress bar
            print("\nerror:", one_line(error), file=sys.stderr)
        leave(FAILED)
    except Exception:
        traceback.print_exc()
        leave(FAILED)


def leave(code: int) -> NoReturn:
    """End the process with a code, without leaving the process group where there are others."""
    say_ended(code)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_well(code: int = 0) -> NoReturn:
    """The last act of a program that had a process group: end past Python's own shutdown.

    Gloo's threads outlive `destroy_process_group` (torch 2.13). One that frees the tensors of the
    last collective while Python shuts down waits for it in vain and aborts the process, so that
    work that is done looks failed: one end in four was seen.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_now(code: int) -> NoReturn:
    """End the process with a code from any thread, whatever the others are stuck in."""
    say_ended(code)
    os._exit(code)
