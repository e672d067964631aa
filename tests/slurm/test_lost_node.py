"""A node dies in the middle of a run; the run goes on without it, on half as many ranks."""

from pathlib import Path

import pytest
from cluster import Cluster
from slurm_runs import assert_same_losses, events, start, wait_for_step

pytestmark = pytest.mark.slurm
TOLERANCE = 1e-5  # fp32; one rank adds up what two did


@pytest.mark.soak
def test_a_killed_nodes_run_goes_on_on_the_other_with_half_the_ranks(
    spare_cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path
):
    cluster, run_dir = spare_cluster, tmp_path / "run"
    saves = ("--checkpoint.every_steps", "20")
    job_id = start(cluster, tiny_dataset, run_dir, *saves, nodes=2)
    wait_for_step(cluster, job_id, run_dir, 50)
    cluster.power_off("node2")
    # What Slurm does by itself after SlurmdTimeout, five minutes.
    cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=dead", env={})

    def waits() -> str:
        return "PENDING" if "JobState=PENDING" in cluster.show(job_id) else ""

    cluster.wait_for(waits, job_id)  # for a second node, which does not come back
    cluster.run("scancel", job_id, env={})
    one = start(cluster, tiny_dataset, run_dir, *saves, env={"RANKS_PER_NODE": "1"})
    job = cluster.ended(one)
    assert job.completed, job.log
    begun = [event["samples_seen"] for event in events(run_dir, "start")]
    assert len(begun) >= 3 and begun[0] == 0 and begun[1] >= 40 * 16, begun
    assert_same_losses(run_dir, undisturbed, TOLERANCE)


@pytest.mark.soak
def test_shards_come_to_each_nodes_own_disk_and_go_with_the_job(
    cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path
):
    own, run_dir = tmp_path / "own_disk", tmp_path / "run"
    own.mkdir()
    job_id = start(cluster, tiny_dataset, run_dir, nodes=2, env={"SHARD_CACHE": str(own)})
    wait_for_step(cluster, job_id, run_dir, 5)
    assert len(list((own / f"pretrain-{job_id}").glob("*.tar"))) > 0
    job = cluster.ended(job_id)
    assert job.completed, job.log
    assert not list(own.iterdir())
    assert_same_losses(run_dir, undisturbed)
