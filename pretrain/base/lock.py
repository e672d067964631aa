"""One process at a time: the lock of a folder or a file, which ends with its holder."""

import atexit
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

LOCK_FILE = "lock"  # in a folder
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOOK_S = 0.2
_SILENT_S = 1.0  # of waiting, before a word is said
_BEAT_S, _DEAD_S = 10.0, 60.0  # of a lock file, where the disk has no flock


class HeldError(OSError):
    """Another process is at work; the message says who."""


class Lock:
    """A file that this process alone has, until it is released or the process ends.

    The kernel frees it. Where the disk has no flock, a file FILE.held stands for it: its holder
    renews its time, and what was not renewed for a minute is left behind. The file's content
    stays as it is but for `sign`. No link is followed.
    """

    def __init__(self, path: Path, *, patience_s: float | None = None) -> None:
        """HeldError after patience_s (a minute more without flock); None: waits as long as it
        takes. OSError where `path` cannot be made, or is a link."""
        self._path, self._beats = path, _Beats(path.with_name(path.name + ".held"))
        begin = time.monotonic()
        while not self._take(wait=patience_s is None):
            extra_s = _DEAD_S if self._beats.are_needed else 0.0
            if patience_s is not None and time.monotonic() >= begin + patience_s + extra_s:
                raise HeldError(f"{path} is held by {owner(path)}: wait for it, or end it")
            time.sleep(_LOOK_S)

    def _take(self, *, wait: bool) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_APPEND
        self._path.parent.mkdir(parents=True, exist_ok=True)  # who had it may have removed it
        try:
            self.descriptor = os.open(self._path, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OSError(error.errno, "a link is not followed", str(self._path)) from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if self._is_named():
                return True
            os.close(self.descriptor)
            return self._take(wait=wait)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            if self._beats.begin(now=self._disk_time()):
                return True
        os.close(self.descriptor)
        return False

    def _is_named(self) -> bool:
        """Whether the name is still this file's: its last holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), self._path.lstat())
        except FileNotFoundError:
            return not self._path.parent.exists()  # with the folder: whoever waits goes on alike

    def _disk_time(self) -> float:
        """Now, by the clock that stamps the files there."""
        os.utime(self.descriptor)
        return os.fstat(self.descriptor).st_mtime

    def sign(self) -> None:
        """Write into the file who holds it."""
        os.ftruncate(self.descriptor, 0)
        os.write(self.descriptor, _signature())

    def release(self) -> None:
        """Let another process have it."""
        self._beats.end()
        os.close(self.descriptor)


@contextmanager
def locked(folder: Path, *, patience_s: float | None = None, keep: bool = True) -> Iterator[int]:
    """Nobody else works in this folder, which is made. By default waits for whoever does.

    Yields the lock's file descriptor: a program that is started with it holds the lock, too.
    keep: whether the lock's file stays; its holder may also remove it.
    """
    lock = Lock(folder / LOCK_FILE, patience_s=patience_s)
    try:
        lock.sign()
        yield lock.descriptor
    finally:
        if not keep:
            (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_aloud(folder: Path, what: str) -> Iterator[int]:
    """`locked`; who waits says on stderr for what, and for whom."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(folder, patience_s=_SILENT_S))
        except HeldError:
            print(
                f"note: waiting for {what} that {owner(folder / LOCK_FILE)} makes", file=sys.stderr
            )
            descriptor = stack.enter_context(locked(folder))
        yield descriptor


def owner(path: Path) -> str:
    """Who has signed a lock."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _signature() -> bytes:
    told = {"host": socket.gethostname(), "pid": os.getpid()}
    return (json.dumps(told) + "\n").encode()


class _Beats:
    """A file that is there while its holder lives, who renews its time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over: threading.Event | None = None
        self.are_needed = False

    def begin(self, now: float) -> bool:
        """Make the file, in place of one that is left behind; False where another has it."""
        self.are_needed = True
        _tell_once(self._path.parent)
        self._remove_dead(now)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        os.write(descriptor, _signature())
        os.close(descriptor)
        self._over = over = threading.Event()
        atexit.register(self.end)
        threading.Thread(target=self._beat, args=(over,), name="lock", daemon=True).start()
        return True

    def _remove_dead(self, now: float) -> None:
        """Another may do the same, and hold it by now: then it is put back."""
        with suppress(FileNotFoundError):
            found = self._path.lstat()
            if now - found.st_mtime < _DEAD_S:
                return
            taken = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
            self._path.rename(taken)
            if not os.path.samestat(found, taken.lstat()):
                with suppress(FileExistsError):
                    os.link(taken, self._path)
            taken.unlink()

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(_BEAT_S):
            with suppress(OSError):
                os.utime(self._path)

    def end(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None
            self._path.unlink(missing_ok=True)


@cache
def _tell_once(folder: Path) -> None:
    print(
        f"note: the disk of {folder} has no file locks (flock): files *.held, renewed every few "
        "seconds, stand for them",
        file=sys.stderr,
    )
