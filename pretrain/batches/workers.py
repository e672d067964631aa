"""Loader processes: batches built beside the training process, whose interpreter they leave alone.

Threads that build batches take turns at Python's lock with the thread that gives the GPU its work,
which then waits for it. So one server process, which knows nothing of the GPU, opens the dataset
once and forks the workers. They write pictures where the training process reads them, in memory
that lives as long as a process has it open: a killed run leaves nothing behind, and /dev/shm may be
small.
"""

import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from pretrain.base import progress
from pretrain.batches.collate import Batch, Collator
from pretrain.batches.slots import Slots

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_STOPPED_S = 10.0


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What the server is told by its standard input."""

    collator: Collator
    sockets: list[int]  # one a worker
    boards: int  # descriptor of each worker's board, one after the other
    pictures: int  # and of the batches' pictures
    shape: tuple[int, ...]  # of these, uint8


def _map_boards(descriptor: int, workers: int) -> list[progress.Board]:
    size = progress.BOARD_BYTES
    whole = memoryview(mmap.mmap(descriptor, workers * size))
    return [progress.Board(whole[n * size : (n + 1) * size]) for n in range(workers)]


class Workers:
    """`count` processes that build parts of batches in `slots`. Thread-safe; Linux only."""

    def __init__(self, collator: Collator, *, count: int, slots: Slots) -> None:
        boards = os.memfd_create("boards")
        os.ftruncate(boards, count * progress.BOARD_BYTES)
        pairs = [socket.socketpair() for _ in range(count)]
        theirs = [other.fileno() for _, other in pairs]
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            pass_fds=(boards, slots.descriptor, *theirs),
            start_new_session=True,  # a group of its own, to be ended as one
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path())},
        )
        for _, other in pairs:
            other.close()
        assert self._server.stdin is not None
        with self._server.stdin as pipe, suppress(BrokenPipeError):  # `build` tells of its end
            told = _Told(
                collator=collator,
                sockets=theirs,
                boards=boards,
                pictures=slots.descriptor,
                shape=slots.shape,
            )
            pipe.write(_pickle(told))
        self._boards = _map_boards(boards, count)
        os.close(boards)
        slots.close_descriptor()
        progress.watch_boards(self._boards)
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._connections = [Connection(mine.detach()) for mine, _ in pairs]
        for connection in self._connections:
            self._free.put(connection)

    def build(
        self, positions: NDArray[np.int64], rows: NDArray[np.int64], slot: int, first: int
    ) -> Batch:
        """What the collator makes of these, by a worker that is free: pictures in the slot from
        place `first` on, and not in the batch. Its error is raised here."""
        connection = self._free.get()
        try:
            connection.send((positions, rows, slot, first))
            answer: Any = connection.recv()
        except (EOFError, OSError) as error:
            self._free.put(connection)  # who takes it next fails too, and waits for nobody
            raise RuntimeError(
                "a loader process has ended (see above; the system may have killed it for lack of "
                "memory): lower data.loader.workers, or set data.loader.kind to threads"
            ) from error
        self._free.put(connection)
        if isinstance(answer, BaseException):
            raise answer
        return cast(Batch, answer)

    def close(self) -> None:
        """End all processes, whatever they are at."""
        progress.unwatch_boards(self._boards)
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait(_STOPPED_S)
        for connection in self._connections:
            connection.close()


def _search_path() -> list[str]:
    """Where this process finds modules, the folder of `pretrain` first."""
    root = str(Path(__file__).resolve().parents[2])
    return [root, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]


class _Pickler(pickle.Pickler):
    """Mapped files are mapped again, not copied."""

    def reducer_override(self, value: object) -> Any:
        if type(value) is np.memmap:
            assert value.filename is not None
            told = (value.filename, value.dtype, "r", value.offset, value.shape)
            return np.memmap, told
        return NotImplemented


def _pickle(value: object) -> bytes:
    buffer = BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it does not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _work(
    collator: Collator, connection: Connection, board: progress.Board, pictures: NDArray[np.uint8]
) -> None:
    """Build what is asked for until nobody asks any more."""
    progress.show_reads(board)
    while True:
        try:
            positions, rows, slot, first = connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            images = pictures[slot, first : first + len(rows)]
            answer = {**collator(positions, rows, images), "images": None}
        except Exception as error:
            answer = _sendable(error)
        with suppress(BrokenPipeError):  # asked by a process that is gone: recv says so
            connection.send(answer)


def _fork(told: _Told) -> dict[int, int]:
    """Number of each worker by its process."""
    found = {}
    boards = _map_boards(told.boards, len(told.sockets))
    memory = mmap.mmap(told.pictures, int(np.prod(told.shape)))
    pictures = np.frombuffer(memory, np.uint8).reshape(told.shape)
    for number, own in enumerate(told.sockets):
        if process := os.fork():
            # The last who has it open ends it: so each has its own alone.
            os.close(own)
            found[process] = number
            continue
        code = 1
        try:
            for other in told.sockets[number + 1 :]:
                os.close(other)
            _work(told.collator, Connection(own), boards[number], pictures)
            code = 0
        finally:
            os._exit(code)
    return found


def _serve() -> NoReturn:
    """Fork the workers that standard input tells of, and tell of those that end by a fault."""
    for one in _IGNORED:  # the training process decides when it is over
        signal.signal(one, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    workers = _fork(pickle.load(sys.stdin.buffer))
    while workers:
        process, status = os.wait()
        number = workers.pop(process)
        if code := os.waitstatus_to_exitcode(status):
            what = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
            print(f"loader process {number} (pid {process}) ended by {what}", file=sys.stderr)
    sys.exit(0)


if __name__ == "__main__":
    _serve()
