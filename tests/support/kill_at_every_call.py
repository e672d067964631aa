"""Kills a tiny run at chosen file-system calls of its threads, resumes it, and compares with an
undisturbed one.

    PYTHONPATH=. python tests/support/kill_at_every_call.py FOLDER COUNT -- TRAINING OPTIONS

COUNT calls are chosen evenly over all that Python makes in the run folder (0: every one). Prints
`calls N, tried M` at the end; exit 1 with the first difference. Every trial is a fork of this
process, which has imported everything already: a trial takes a second instead of ten.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import pretrain.engine.engine
import pretrain.run.stage_evaluation
import pretrain.run.start
import pretrain.train

torch.set_num_threads(1)
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def forked(action: Callable[[], None], log: Path) -> int:
    """Wait status of `action` in a fork of this process."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def watch(run_dir: Path, calls: Path, kill_at: int | None) -> None:
    """Count this process's calls in the run folder, and die at one of them, before it is made."""
    count, one_at_a_time = 0, threading.RLock()
    out = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def called(name: str, path: object) -> None:
        nonlocal count
        if str(run_dir) not in str(path) or "tensorboard" in str(path):
            return
        with one_at_a_time:  # the loop's calls, and those of the thread that writes a checkpoint
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            os.write(out, f"{threading.current_thread().name}: {name} {path}\n".encode())

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS:
            called(event, arguments[0])

    sync = os.fsync

    def synced(descriptor: int) -> None:
        called("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    os.fsync = synced
    sys.addaudithook(hook)


def numbers(run_dir: Path) -> list[tuple]:
    """Everything of the log but times, in order, without the starts and the ends of saves, which
    come when the disk is done."""
    kept = ("event", "stage", "step", "samples_seen", "loss", "grad_norm", "logit_scale", "sets")
    kept += ("samples_replaced", "updates_skipped")
    left_out = ("start", "checkpoint_written")
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [tuple(e.get(k) for k in kept) for e in events if e["event"] not in left_out]


def difference(ours: Path, theirs: Path) -> str | None:
    """The first way in which two finished run folders differ."""
    if numbers(ours) != numbers(theirs):
        return "metrics.jsonl"
    for name in ("evaluation.json", "gallery.json"):
        if json.loads((ours / name).read_text()) != json.loads((theirs / name).read_text()):
            return name
    for file in sorted((theirs / "stages").glob("*.safetensors")):
        mine, other = load_file(str(ours / "stages" / file.name)), load_file(str(file))
        if mine.keys() != other.keys() or not all(torch.equal(mine[n], other[n]) for n in other):
            return file.name
    left = [str(path) for path in ours.rglob("*.part")]
    return f"left behind: {left}" if left else None


def main() -> int:
    folder, count, _, *options = sys.argv[1:]
    root = Path(folder)

    def train(run_dir: Path, kill_at: int | None) -> Callable[[], None]:
        def action() -> None:
            watch(run_dir, root / "calls", kill_at)
            code = pretrain.train.main([*options, "--run_dir", str(run_dir)])
            assert not code, f"training ended with {code}"

        return action

    undisturbed, killed, log = root / "undisturbed", root / "killed", root / "log"
    if status := forked(train(undisturbed, None), log):
        print(f"the undisturbed run ended with {status}:\n{log.read_text()}")
        return 1
    calls = (root / "calls").read_text().splitlines()
    step = max(1, len(calls) // (int(count) or len(calls)))
    tried = 0
    for kill_at in range(0, len(calls), step):
        shutil.rmtree(killed, ignore_errors=True)
        where = f"call {kill_at} of {len(calls)}, {calls[kill_at]}"
        status = forked(train(killed, kill_at), log)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            print(f"not killed at {where}: status {status}\n{log.read_text()}")
            return 1
        if status := forked(train(killed, None), log):
            print(f"killed at {where}, the resumed run ended with {status}:\n{log.read_text()}")
            return 1
        if found := difference(killed, undisturbed):
            print(f"killed at {where}, the resumed run differs in {found}\n{log.read_text()}")
            return 1
        tried += 1
        print(f"{where}: equal", flush=True)
    print(f"calls {len(calls)}, tried {tried}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
