"""How far work is: for people, as a bar or lines; for the watchdog, what is done since when."""

import json
import struct
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pretrain.base.files import write_durably

_last: tuple[str, float] = ("starting", time.monotonic())
_reads: dict[int, tuple[str, float]] = {}  # by thread
BOARD_BYTES = 512
_LINE_EVERY_S = 60.0  # where a log file is no screen
_FILE_EVERY_S = 5.0
_file: Path | None = None
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}{postfix}, {remaining} to go"
_BOARD_HEAD = struct.Struct("<dH")  # since when, by the clock that all processes share; path bytes


class Board:
    """BOARD_BYTES of shared memory, on which a process shows which file it is reading."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def show(self, path: str, since: float) -> None:
        name = path.encode()[: BOARD_BYTES - _BOARD_HEAD.size]
        self._memory[_BOARD_HEAD.size : _BOARD_HEAD.size + len(name)] = name
        _BOARD_HEAD.pack_into(self._memory, 0, since, len(name))

    def clear(self) -> None:
        _BOARD_HEAD.pack_into(self._memory, 0, 0.0, 0)

    def read(self) -> tuple[str, float] | None:
        """(file, since when) of a read that goes on; None without any."""
        since, size = _BOARD_HEAD.unpack_from(self._memory)
        name = bytes(self._memory[_BOARD_HEAD.size : _BOARD_HEAD.size + size])
        return (name.decode("utf-8", "replace"), since) if size else None


_own_board: Board | None = None
_boards: list[Board] = []


def show_reads(board: Board) -> None:
    """Show this process's reads, of one thread, on a board."""
    global _own_board
    _own_board = board


def watch_boards(boards: Iterable[Board]) -> None:
    """Count what processes show on these among this one's reads."""
    _boards.extend(boards)


def unwatch_boards(boards: Iterable[Board]) -> None:
    """Their processes are gone."""
    for board in boards:
        _boards.remove(board)


def doing(what: str) -> None:
    """Say that work has got as far as this; costs less than a microsecond."""
    global _last
    _last = (what, time.monotonic())


def last() -> tuple[str, float]:
    """(what was said last, seconds since)."""
    what, at = _last
    return what, time.monotonic() - at


class Reading:
    """While a thread reads a file. Not a generator: a sample is read in microseconds."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        since = time.monotonic()
        _reads[threading.get_ident()] = (self._path, since)
        if _own_board is not None:
            _own_board.show(self._path, since)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _reads.pop(threading.get_ident(), None)
        if _own_board is not None:
            _own_board.clear()


def longest_read() -> tuple[str, float] | None:
    """(file, seconds) of the read that has gone on for longest; None without any."""
    found = list(_reads.values())
    found += [read for board in list(_boards) if (read := board.read()) is not None]
    if not found:
        return None
    path, at = min(found, key=lambda read: read[1])
    return path, time.monotonic() - at


def write_progress(path: Path | None) -> None:
    """From now on, every bar tells its state in this JSON file, too, the last one that moved:

    what, unit, done, total, per_s, elapsed_s, to_go_s, more, ended, time (UTC). None: no file.
    """
    global _file
    if path is not None and path != _file:
        try:
            write_durably(path, json.dumps({"what": "starting", "ended": False}) + "\n")
        except OSError as error:
            raise OSError(f"--progress-file={path} cannot be written: {error}") from error
    _file = path


class Bar(tqdm):  # type: ignore[type-arg]
    """How far long work is, on standard error: a bar at a terminal; elsewhere a line a minute, so
    that short work says nothing."""

    disable: bool

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        what: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        stays: bool = True,
    ) -> None:
        """items: what it is gone over by, or else `update` counts; done: of an earlier start;
        stays: whether a terminal keeps the bar when the work is done."""
        self._in_lines = not sys.stderr.isatty()
        self._said = time.monotonic()
        self._written, self._told = -_FILE_EVERY_S, False
        super().__init__(
            items,
            desc=what,
            unit=f" {unit}",
            total=total,
            initial=done,
            unit_scale=True,
            smoothing=0.05,
            dynamic_ncols=not self._in_lines,
            mininterval=min(1.0, _LINE_EVERY_S) if self._in_lines else 0.5,
            bar_format=_LINE if self._in_lines else None,
            leave=stays and not self._in_lines,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        self._write(ended=False)
        if not self._in_lines:
            return super().display(msg, pos)
        if not self.disable and time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Lines stay."""
        if not self._in_lines:
            super().clear(nolock)

    def _write(self, *, ended: bool) -> None:
        """The file of `write_progress`, now and then."""
        now = time.monotonic()
        if _file is None or self.disable or not (ended or now - self._written >= _FILE_EVERY_S):
            return
        self._written = now
        told = self.format_dict
        rate, left = told["rate"], None if self.total is None else self.total - self.n
        if rate is None and told["elapsed"] > 0:
            rate = (self.n - self.initial) / told["elapsed"]
        state = {
            "what": self.desc,
            "unit": self.unit.strip(),
            "done": self.n,
            "total": self.total,
            "per_s": rate and round(rate, 3),
            "elapsed_s": round(told["elapsed"], 1),
            "to_go_s": round(left / rate, 1) if rate and left is not None else None,
            "more": told["postfix"],
            "ended": ended,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        try:
            write_durably(_file, json.dumps(state, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:  # days of work do not end by it
            if not self._told:
                print(f"note: --progress-file={_file}: {error}", file=sys.stderr)
            self._told = True

    def close(self) -> None:
        self._write(ended=True)
        if not self._in_lines:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)
