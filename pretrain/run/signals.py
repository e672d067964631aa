"""Signals: a request to stop becomes a checkpoint, and an exit code that asks to be continued.

SIGTERM, SIGUSR1 and SIGINT set a flag. The ranks agree on it once a step, in a sum that they make
anyway, save, and leave with 75. A second SIGINT, a second after the first or later (one Ctrl-C may
come by several ways), ends this process at once (130). Before training
nothing can be lost: there the first signal ends this process at once, with 75 too.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

from pretrain.base.exit_codes import CONTINUE, INTERRUPTED
from pretrain.base.faults import end_now
from pretrain.base.launch import register

_SAME_S = 1.0
_STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Signals:
    """Listens for requests to stop, from here to the end of the process."""

    def __init__(self) -> None:
        self._training = False
        self._first: str | None = None
        self._first_at = 0.0
        self._lock = threading.Lock()
        # The kernel's signal reaches this pipe at once; Python's own handlers would wait for the
        # main thread, and that may be stuck in a collective.
        self._pipe, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for one in _STOPS:
            signal.signal(one, _ignore)
            signal.siginterrupt(one, False)  # a write or a collective under way goes on
        threading.Thread(target=self._listen, daemon=True, name="signals").start()
        register()

    @property
    def asked(self) -> str | None:
        """The signal that has asked this rank to stop, by name."""
        return self._first

    def training(self) -> None:
        """From now on a request waits for the end of a step."""
        with self._lock:
            self._training = True

    def _listen(self) -> None:
        while True:
            for number in os.read(self._pipe, 64):
                if number in _STOPS:
                    self._take(signal.Signals(number))

    def _take(self, one: signal.Signals) -> None:
        with self._lock:
            if not self._training:
                _say(f"{one.name} before training: this process ends, and loses nothing by it")
                # Without a word to the command above: it knows whether it passed a request on, or
                # whether the launcher ends this rank because another one has died.
                os._exit(CONTINUE)
            if self._first is None:
                self._first, self._first_at = one.name, time.monotonic()
                _say(f"{one.name}: a checkpoint after this step (evaluation, save), then the end")
            elif (
                one == signal.SIGINT
                and self._first == one.name
                and time.monotonic() > self._first_at + _SAME_S
            ):
                _say("SIGINT again: this process ends now, without a checkpoint")
                end_now(INTERRUPTED)


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """There must be a handler for the pipe to hear of a signal."""


def _say(line: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(sys.stderr.fileno(), f"\n{line}\n".encode())
