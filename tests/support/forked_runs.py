"""Training runs of one process, forked from a server that has imported all: a second each."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

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


def train(run_dir: Path, dataset: Path, *options: str, recipe: Path = TINY) -> Ended:
    """A recipe, the tiny one by default, on a dataset, with more options over it."""
    log = run_dir.with_name(run_dir.name + ".log")
    words = [
        "--config",
        str(recipe),
        *PLAIN,
        "--data.train",
        str(dataset),
        "--run_dir",
        str(run_dir),
        *options,
    ]
    process = CONTEXT.Process(target=_train, args=(words, log))
    process.start()
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"over {TIMEOUT_S} s: {words}\n{log.read_text()}")
    return Ended(code=process.exitcode, output=log.read_text())


def _train(words: list[str], log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    import torch

    from pretrain.train import main

    torch.set_num_threads(1)
    code = main(words)
    sys.stdout.flush()
    sys.exit(code)
