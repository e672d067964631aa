"""A job on real Slurm that is stopped goes on by itself, and one that fails does not."""

import contextlib
import time
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from slurm_runs import ENV, assert_same_losses, events, start, wait_for_step

pytestmark = pytest.mark.slurm


def assert_went_on(run_dir: Path, undisturbed: Path, *, starts: int = 2) -> None:
    """Began once, and went on from where it was stopped, to the undisturbed run's losses."""
    begun = [event["samples_seen"] for event in events(run_dir, "start")]
    first_stage = [seen for seen in begun if seen < events(undisturbed, "start")[1]["samples_seen"]]
    assert first_stage[0] == 0
    assert len(first_stage) == starts and first_stage == sorted(set(first_stage)), begun
    assert_same_losses(run_dir, undisturbed)


def test_usr1_saves_and_the_job_goes_on_by_itself(
    cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir)
    wait_for_step(cluster, job_id, run_dir, 20)
    # As --signal=B:USR1@300 has Slurm do it: to the batch shell alone.
    cluster.run("scancel", "--batch", "--signal=USR1", job_id, env={})

    job = cluster.ended(job_id)
    assert job.completed, job.log
    assert job.restarts == 1
    assert [event["signal"] for event in events(run_dir, "stop")] == ["SIGUSR1"]
    assert "the ranks ended with 75: back to the queue, to go on from step-" in job.log
    assert "SLURM_RESTART_COUNT=0, newest checkpoint none" in job.log
    assert "SLURM_RESTART_COUNT=1, newest checkpoint step-" in job.log
    assert_went_on(run_dir, undisturbed)


def test_a_killed_rank_ends_the_job_with_the_reason_and_for_good(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir, "--stages.reduced.steps", "100000", nodes=2)
    wait_for_step(cluster, job_id, run_dir, 5)
    rank_process(run_dir, rank="1").kill()
    begun = time.monotonic()

    job = cluster.ended(job_id)
    assert time.monotonic() - begun < 60
    assert job.states == ["FAILED"] and job.exit_codes[0] not in (0, 75, 124), job.log
    assert job.restarts == 0
    assert "ended by SIGKILL" in job.log
    assert "back to the queue" not in job.log


def rank_process(run_dir: Path, *, rank: str) -> psutil.Process:
    """The process of a rank: the hosts' processes are seen from here too."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "pretrain.train" in words and str(run_dir) in words:
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RANK") == rank:
                    return process
    raise AssertionError(f"no rank {rank} of {run_dir}")


@pytest.mark.soak
def test_usr1_on_two_nodes(cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir, nodes=2)
    wait_for_step(cluster, job_id, run_dir, 20)
    cluster.run("scancel", "--batch", "--signal=USR1", job_id, env={})
    job = cluster.ended(job_id)
    assert job.completed and job.restarts == 1, job.log
    assert_went_on(run_dir, undisturbed)


@pytest.mark.soak
def test_scontrol_requeue(cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir)
    wait_for_step(cluster, job_id, run_dir, 20)
    cluster.run("scontrol", "requeue", job_id, env={})
    job = cluster.ended(job_id)
    assert job.completed and job.restarts == 1, job.log
    assert events(run_dir, "stop"), "Slurm's TERM was not taken for a request to stop"
    assert_went_on(run_dir, undisturbed)


@pytest.mark.soak
def test_preemption_by_a_higher_partition(
    cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir)
    wait_for_step(cluster, job_id, run_dir, 20)
    urgent = cluster.start(
        *("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "srun sleep 1"),
        env=ENV,
    )
    assert cluster.ended(urgent).completed
    job = cluster.ended(job_id)
    assert job.completed and job.restarts == 1, job.log
    assert events(run_dir, "stop"), "Slurm's TERM was not taken for a request to stop"
    assert_went_on(run_dir, undisturbed)


@pytest.mark.soak
def test_a_cancelled_job_saves_and_does_not_come_back(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir, "--stages.reduced.steps", "100000")
    wait_for_step(cluster, job_id, run_dir, 5)
    cluster.run("scancel", job_id, env={})
    job = cluster.ended(job_id)
    assert job.states == ["CANCELLED"] and job.restarts == 0, job.log
    assert events(run_dir, "stop")
    time.sleep(8)  # a requeue would have started it again
    assert cluster.ended(job_id).states == ["CANCELLED"]


@pytest.mark.soak
def test_a_job_that_may_not_be_requeued_ends_saved(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"
    job_id = start(cluster, tiny_dataset, run_dir, "--stages.reduced.steps", "100000")
    wait_for_step(cluster, job_id, run_dir, 5)
    cluster.run("scontrol", "update", f"JobId={job_id}", "Requeue=0", env={})
    cluster.run("scancel", "--batch", "--signal=USR1", job_id, env={})
    job = cluster.ended(job_id)
    assert job.states == ["FAILED"] and job.exit_codes[0] == 75, job.log
    assert events(run_dir, "stop")
    assert "not requeued: submit the same command again" in job.log


@pytest.mark.soak
def test_restarts_without_a_new_checkpoint_are_bounded(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    still = ("--watchdog.timeout_s", "0.01")
    once = {"MAX_IDLE_RESTARTS": "1"}
    job = cluster.ended(start(cluster, tiny_dataset, tmp_path / "run", *still, env=once))
    assert job.states == ["FAILED"] and job.exit_codes[0] == 1, job.log
    assert job.restarts == 1
    assert job.log.count("the ranks ended with 124: back to the queue") == 1
    assert "1 restarts without a new checkpoint" in job.log
