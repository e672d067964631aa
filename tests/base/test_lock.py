"""A lock has one holder, ends with it, follows no link, and holds on a disk without flock."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.base import lock as lock_module
from pretrain.base.lock import LOCK_FILE, HeldError, Lock, locked

COUNT = """
import errno, fcntl, sys, time
from pathlib import Path
from pretrain.base.lock import locked
if sys.argv[2] == "without":
    def flock(file, how):
        raise OSError(errno.ENOSYS, "no flock here")
    fcntl.flock = flock
count = Path(sys.argv[1]) / "count"
for _ in range(5):
    with locked(count.parent):
        found = int(count.read_text()) if count.exists() else 0
        time.sleep(0.02)
        count.write_text(str(found + 1))
"""


@pytest.mark.parametrize("kernel", ["with", "without"])
def test_one_process_at_a_time(tmp_path: Path, kernel: str) -> None:
    words = [sys.executable, "-c", COUNT, str(tmp_path), kernel]
    at_work = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    told = [process.communicate()[1] for process in at_work]
    assert [process.returncode for process in at_work] == [0] * 4, told
    assert (tmp_path / "count").read_text() == "20"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", LOCK_FILE]
    assert all(text.count("\n") == (kernel == "without") for text in told), told


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_flock_a_dead_holder_is_told_from_one_that_lives(tmp_path, monkeypatch) -> None:
    without_flock(monkeypatch)
    monkeypatch.setattr(lock_module, "_BEAT_S", 0.1)
    monkeypatch.setattr(lock_module, "_DEAD_S", 1.0)
    held = tmp_path / "lock.held"
    held.write_text("")
    then = time.time() - 2
    os.utime(held, (then, then))
    lock = Lock(tmp_path / LOCK_FILE, patience_s=0)
    lock.sign()
    with pytest.raises(HeldError, match=f"is held by process {os.getpid()} on "):
        Lock(tmp_path / LOCK_FILE, patience_s=0.5)
    lock.release()
    assert not held.exists()
    Lock(tmp_path / LOCK_FILE, patience_s=0).release()


def test_a_linked_lock_is_neither_followed_nor_emptied(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(mine)
    with pytest.raises(OSError, match="a link is not followed"), locked(tmp_path / "run"):
        pass
    assert mine.read_text() == "kept"


def test_a_lock_whose_file_was_removed_is_nobodys(tmp_path: Path) -> None:
    first = Lock(tmp_path / LOCK_FILE)
    (tmp_path / LOCK_FILE).unlink()
    second = Lock(tmp_path / LOCK_FILE, patience_s=0)
    first.release()
    with pytest.raises(HeldError):
        Lock(tmp_path / LOCK_FILE, patience_s=0)
    second.release()
