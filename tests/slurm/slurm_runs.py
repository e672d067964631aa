"""Tiny runs by the templates, and what they have logged."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "pretrain/recipes/tiny.yaml"
SITE = ("--account=none", "--partition=main")
# The pre-flight costs an import of torch, and has tests of its own.
ENV = {
    "VENV": sys.prefix,
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PREFLIGHT": "0",
}
STEPS = 300  # of the first stage: seconds, in which a run can be disturbed
TOLERANCE = 1e-6  # fp32; two ranks either way, so only the order of the network's sums may differ


def overrides(dataset: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        *("--data.train", str(dataset), "--run_dir", str(run_dir), "--log.every_steps", "1"),
        *("--stages.reduced.steps", str(STEPS), "--checkpoint.every_steps", "1000"),
        *("--log.tensorboard", "false", *more),
    ]


def train_without_slurm(dataset: Path, run_dir: Path) -> None:
    """Two ranks of plain torchrun on this host."""
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "pretrain.train", "--config", RECIPE, *overrides(dataset, run_dir)),
        ],
        cwd=ROOT,
        env={**os.environ, **ENV},
        check=True,
    )


def start(
    cluster: Cluster,
    dataset: Path,
    run_dir: Path,
    *more: str,
    nodes: int = 1,
    env: dict[str, str] | None = None,
) -> str:
    """The id of a job of two ranks, on one node or two."""
    template = "pretrain_1node" if nodes == 1 else "pretrain_multinode"
    return cluster.start(
        *(*SITE, f"slurm/{template}.sbatch", RECIPE, *overrides(dataset, run_dir, *more)),
        env={**ENV, "RANKS_PER_NODE": str(2 // nodes), **(env or {})},
    )


def events(run_dir: Path, kind: str) -> list[dict]:
    """A run's events of a kind, without a line that is still being written."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def wait_for_step(cluster: Cluster, job_id: str, run_dir: Path, step: int) -> None:
    def reached() -> str:
        return str(events(run_dir, "step")[step:])[2:]

    cluster.wait_for(reached, job_id)


def assert_same_losses(run_dir: Path, undisturbed: Path, tolerance: float = TOLERANCE) -> None:
    """Every step of the undisturbed run, at the same samples, with the same loss."""
    found, wanted = (
        {event["samples_seen"]: event["loss"] for event in events(run, "step")}
        for run in (run_dir, undisturbed)
    )
    assert found.keys() == wanted.keys()
    assert len(wanted) > STEPS
    worst = max(abs(found[seen] - wanted[seen]) for seen in wanted)
    assert worst <= tolerance, f"largest difference of a loss: {worst}"
