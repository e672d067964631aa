"""Loader processes: batches built beside the training process, whose interpreter they leave alone.

Threads that build batches take turns at Python's lock with the thread that gives the GPU its work,
which then waits for it. So one server process, which knows nothing of the GPU, opens the dataset
once and forks the workers. They write pictures into memory that lives as long as a process has it
open: a killed run leaves nothing behind, and /dev/shm may be small.
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

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_STOPPED_S = 10.0


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What the server is told by its standard input."""

    collator: Collator
    sockets: list[int]  # one a worker
    memory: "_Memory"


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """Shared by all: each worker's board, then each worker's batch of pictures."""

    descriptor: int
    workers: int
    shape: tuple[int, ...]  # of a batch of pictures, uint8

    @property
    def _boards(self) -> int:
        return -(-self.workers * progress.BOARD_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def _batch(self) -> int:
        return int(np.prod(self.shape))

    @property
    def size(self) -> int:
        return self._boards + self.workers * self._batch

    def map(self) -> "list[tuple[progress.Board, NDArray[np.uint8]]]":
        """(board, pictures) of every worker."""
        whole = memoryview(mmap.mmap(self.descriptor, self.size))
        size = progress.BOARD_BYTES
        boards = [progress.Board(whole[n * size : (n + 1) * size]) for n in range(self.workers)]
        flat = np.frombuffer(whole[self._boards :], np.uint8)
        pictures = flat.reshape(self.workers, *self.shape)
        return list(zip(boards, pictures, strict=True))


class Workers:
    """`count` processes that build batches of up to `samples` rows. Thread-safe; Linux only."""

    def __init__(self, collator: Collator, *, count: int, samples: int) -> None:
        px = collator.tokens.image_px
        descriptor = os.memfd_create("loader")
        memory = _Memory(descriptor=descriptor, workers=count, shape=(samples, px, px, 3))
        os.ftruncate(descriptor, memory.size)
        pairs = [socket.socketpair() for _ in range(count)]
        theirs = [other.fileno() for _, other in pairs]
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            pass_fds=(descriptor, *theirs),
            start_new_session=True,  # a group of its own, to be ended as one
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path())},
        )
        for _, other in pairs:
            other.close()
        assert self._server.stdin is not None
        with self._server.stdin as pipe, suppress(BrokenPipeError):  # `build` tells of its end
            pipe.write(_pickled(_Told(collator=collator, sockets=theirs, memory=memory)))
        mapped = memory.map()
        os.close(descriptor)
        self._boards = [board for board, _ in mapped]
        progress.watch_boards(self._boards)
        self._free: queue.SimpleQueue[tuple[Connection, NDArray[np.uint8]]] = queue.SimpleQueue()
        self._connections = [Connection(mine.detach()) for mine, _ in pairs]
        for connection, (_, pictures) in zip(self._connections, mapped, strict=True):
            self._free.put((connection, pictures))

    def build(
        self, positions: NDArray[np.int64], rows: NDArray[np.int64], images: NDArray[np.uint8]
    ) -> Batch:
        """What the collator makes of these, by a worker that is free. Its error is raised here."""
        worker = self._free.get()
        connection, pictures = worker
        try:
            connection.send((positions, rows))
            answer: Any = connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(
                "a loader process is gone (its end is told above; out of memory, it was killed): "
                "lower data.loader.workers, or set data.loader.kind to threads"
            ) from error
        if isinstance(answer, BaseException):
            self._free.put(worker)
            raise answer
        np.copyto(images, pictures[: len(images)])
        self._free.put(worker)
        answer["images"] = images
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


def _pickled(value: object) -> bytes:
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
            positions, rows = connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = {**collator(positions, rows, pictures[: len(rows)]), "images": None}
        except Exception as error:
            answer = _sendable(error)
        with suppress(BrokenPipeError):  # asked by a process that is gone: recv says so
            connection.send(answer)


def _fork(told: _Told) -> dict[int, int]:
    """Number of each worker by its process."""
    found = {}
    mapped = told.memory.map()
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
            _work(told.collator, Connection(own), *mapped[number])
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
