"""Training runs as people start them, with every process that a launcher makes of them."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from forked_runs import PLAIN, TINY, free_port
from tiny_runs import ROOT

from pretrain.base.run_files import METRICS_FILE

TIMEOUT_S = 100
_PORT = "a free port"  # found anew for every run
LAUNCH = [sys.executable, "-m", "pretrain.launch"]
TORCHRUN = [*(sys.executable, "-m", "torch.distributed.run", "--standalone")]
TORCHRUN += ["--nproc_per_node", "2", "-m"]
DEEPSPEED = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
DEEPSPEED += ["--master_port", _PORT]
DEEPSPEED += ["--no_local_rank", "--module"]
PLAIN_PYTHON = [sys.executable, "-m"]
LONG = ["--stages.reduced.steps", "20000", "--checkpoint.every_steps", "1000000"]


class Run:
    """A run with everything that it printed, and every process that it has started."""

    def __init__(
        self,
        start: list[str],
        run_dir: Path,
        dataset: Path,
        *more: str,
        environment: dict[str, str] | None = None,
    ) -> None:
        run_dir.parent.mkdir(exist_ok=True, parents=True)
        self.run_dir, self.log = run_dir, run_dir.with_name(run_dir.name + ".log")
        words = ["pretrain.train", "--config", str(TINY), *PLAIN, "--run_dir", str(run_dir)]
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [free_port() if word is _PORT else word for word in start]
                + [*words, "--data.train", str(dataset), *more],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                start_new_session=True,
            )
        self.family: list[psutil.Process] = []

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()

    def look(self) -> list[psutil.Process]:
        """The process that was started and all below it, those that have ended too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            known = set(self.family)
            for member in [root, *root.children(recursive=True)]:
                if member not in known:
                    self.family.append(member)
        return self.family

    def wait_for(self, text: str, *, log: bool = False, past: int = 0) -> None:
        """Until metrics.jsonl, or what was printed, holds a text past a number of characters."""
        path = self.log if log else self.run_dir / METRICS_FILE
        deadline = time.monotonic() + TIMEOUT_S
        while not (path.is_file() and text in path.read_text()[past:]):
            assert self.process.poll() is None, f"ended early: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {text!r}: {self.log.read_text()}"
            time.sleep(0.02)
        self.look()

    def ranks(self) -> list[psutil.Process]:
        """The processes that train: those that have started no other."""
        found = {}
        for member in self.look():
            with contextlib.suppress(psutil.Error):
                if "RANK" in (env := member.environ()) and "pretrain.train" in member.cmdline():
                    found[int(env["RANK"])] = member
        return [found[rank] for rank in sorted(found)]

    def end(self, within_s: float = TIMEOUT_S) -> int:
        """The exit code; a process that is left behind fails."""
        code = self.process.wait(within_s)
        deadline = time.monotonic() + 20  # ranks have 15 s to save in
        while (left := [one for one in self.family if is_alive(one)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert not left, f"left behind: {left}\n{self.log.read_text()}"
        return code

    def events(self, kind: str) -> list[dict]:
        lines = (self.run_dir / METRICS_FILE).read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
