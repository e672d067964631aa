"""Kills a build before chosen file-system calls, gives its command again, and compares the bytes.

    PYTHONPATH=. python tests/support/killed_builds.py FOLDER COUNT -- BUILD COMMAND WITH --out OUT

COUNT calls are drawn from all that Python makes below the dataset's folder (0: every one). Every
trial is a fork of this process, which has imported everything and started no thread.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch  # noqa: F401  (what a build imports when it needs it)

from data_prep.__main__ import main

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def die_at_call(folder: Path, kill_at: int | None) -> Callable[[], int]:
    """Have this process killed before its call number `kill_at` below a folder; returns what tells
    how many it has made."""
    calls = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal calls
        if event in EVENTS and str(folder) in str(arguments[0]):
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1

    sys.addaudithook(hook)
    return lambda: calls


def forked_build(command: list[str], out: Path, kill_at: int | None) -> tuple[int, int]:
    """Build in a fork that dies before its call number `kill_at` below `out`: (status, calls)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        calls = die_at_call(out, kill_at)
        code = main([str(out) if word == "OUT" else word for word in command])
        os.write(writing, str(calls()).encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        counted = file.read()
    return os.waitpid(child, 0)[1], int(counted or -1)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def try_all(folder: Path, count: int, command: list[str]) -> None:
    older, wanted, out = folder / "older", folder / "wanted", folder / "out"
    assert forked_build([*command, "--tiers", "32:80,48:80"], older, None)[0] == 0
    shutil.copytree(older, wanted)
    status, calls = forked_build([*command, "--overwrite"], wanted, None)
    assert status == 0 and calls > 100, (status, calls)
    moments = random.Random(1).sample(range(calls), count) if count else range(calls)
    for moment in moments:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(older, out)
        old = (out / "manifest.json").read_bytes()
        status, _ = forked_build([*command, "--overwrite"], out, moment)
        assert status == signal.SIGKILL, (moment, status)
        manifest = out / "manifest.json"
        # What was finished but for the removal of the work folder need not be built again.
        finished = manifest.exists() and manifest.read_bytes() != old
        again = command if finished else [*command, "--overwrite"]
        assert forked_build(again, out, None)[0] == 0, moment
        one, other = content(out), content(wanted)
        assert sorted(one) == sorted(other), (moment, sorted(one.keys() ^ other.keys()))
        assert not [name for name in one if one[name] != other[name]], moment
    print(f"calls {calls}, tried {len(moments)}")


if __name__ == "__main__":
    try_all(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:])
