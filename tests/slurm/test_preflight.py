"""Before a rank starts, the templates name a node that would fail or slow down all the others."""

import shutil
from pathlib import Path

import pytest
from cluster import Cluster
from slurm_runs import start

pytestmark = pytest.mark.slurm


ON = {"PREFLIGHT": "1"}


def on(node: str, cluster: Cluster, *command: str | Path) -> None:
    """A command in a node's own view of the file systems."""
    cluster.run("srun", "--partition=urgent", f"--nodelist={node}", *command, env={})


def test_a_bad_node_is_named_with_all_that_is_wrong_there(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    dataset, run_dir = tmp_path / "dataset", tmp_path / "run"
    shutil.copytree(tiny_dataset, dataset)
    run_dir.mkdir()
    on("node2", cluster, "mount", "-t", "tmpfs", "tmpfs", dataset)
    on("node2", cluster, "mount", "--bind", run_dir, run_dir)
    on("node2", cluster, "mount", "-o", "remount,ro,bind", run_dir)
    on("node2", cluster, "mount", "-o", "remount,size=32m", "/dev/shm")
    try:
        job = cluster.ended(start(cluster, dataset, run_dir, nodes=2, env=ON))
    finally:
        on("node2", cluster, "mount", "-o", "remount,size=50%", "/dev/shm")
        on("node2", cluster, "umount", run_dir, dataset)
    assert job.states == ["FAILED"] and job.exit_codes[0] == 2, job.log
    bad = [line for line in job.log.splitlines() if line.startswith("error:")]
    assert len(bad) == 1 and bad[0].startswith("error: pre-flight: node2 is bad: "), job.log
    assert f"data.train={dataset} cannot be read" in bad[0]
    assert f"run_dir={run_dir} cannot be written: Read-only file system" in bad[0]
    assert "/dev/shm has 32 MiB free" in bad[0]
    assert "pre-flight: node1: no GPU asked for" in job.log
    assert not (run_dir / "metrics.jsonl").exists(), "the ranks were started"


@pytest.mark.soak
def test_a_bad_node_is_left_out_of_the_next_start_where_that_is_asked(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    few = ("--stages.reduced.steps", "2")
    asked = {**ON, "EXCLUDE_BAD_NODES": "1"}
    # On node1 alone: jobs of one node begin there.
    on("node1", cluster, "mount", "-o", "remount,size=32m", "/dev/shm")
    try:
        job = cluster.ended(start(cluster, tiny_dataset, tmp_path / "run", *few, env=asked))
    finally:
        on("node1", cluster, "mount", "-o", "remount,size=50%", "/dev/shm")
    assert job.completed and job.restarts == 1, job.log
    assert "error: pre-flight: node1 is bad: /dev/shm has 32 MiB free" in job.log
    assert "back to the queue, without node1" in job.log
    assert "pre-flight: node2: no GPU asked for" in job.log
    assert "finished: " in job.log


@pytest.mark.soak
def test_good_nodes_are_described_and_the_ranks_start(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    few = ("--stages.reduced.steps", "2")
    job = cluster.ended(start(cluster, tiny_dataset, tmp_path / "run", *few, nodes=2, env=ON))
    assert job.completed, job.log
    assert "pre-flight: node2: no GPU asked for, clock within 0.1 s, /dev/shm" in job.log
    assert "pre-flight: all-reduce of 64 MiB over 2 nodes, one process each: " in job.log
    assert "finished: " in job.log
    assert not list((tmp_path / "run").glob(".preflight*"))
