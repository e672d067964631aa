"""Training runs whose ranks are forked from a server that has imported all: a second each."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkserver import CONTEXT
from tiny_runs import ROOT

TIMEOUT_S = 120
TINY = ROOT / "pretrain/recipes/tiny.yaml"
PLAIN = ["--data.loader.workers", "0", "--log.tensorboard", "false", "--log.every_steps", "1"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: its exit status, and all that it printed."""

    code: int
    output: str


def train(
    run_dir: Path,
    dataset: Path,
    *options: str,
    recipe: Path = TINY,
    ranks: int = 1,
    plain: bool = True,
) -> Ended:
    """A recipe, the tiny one by default, on a dataset, with more options over it; `plain`: without
    loader workers and TensorBoard."""
    log = run_dir.with_name(run_dir.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["--config", str(recipe), *(PLAIN if plain else [])]
    words += ["--data.train", str(dataset), "--run_dir", str(run_dir), *options]
    joint = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    joint |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(ranks):
        environment = {**joint, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        processes.append(CONTEXT.Process(target=_train, args=(words, log, environment)))
        processes[-1].start()
    deadline = time.monotonic() + TIMEOUT_S
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    if any(process.exitcode is None for process in processes):
        for process in processes:
            process.kill()
        raise TimeoutError(f"over {TIMEOUT_S} s: {words}\n{log.read_text()}")
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    return Ended(code=code, output=log.read_text())


def trained(run_dir: Path, dataset: Path, *options: str, **how: Any) -> str:
    """`train`, which has to end well; returns what was printed."""
    ended = train(run_dir, dataset, *options, **how)
    assert ended.code == 0, ended.output
    return ended.output


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _train(words: list[str], log: Path, environment: dict[str, str]) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        os.environ.pop(name, None)  # of a group that a test had in its own process
    os.environ.update(environment)
    import torch

    from pretrain.cli import end
    from pretrain.train import main

    torch.set_num_threads(1)
    end(main(words))
