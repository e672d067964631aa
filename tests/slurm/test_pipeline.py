"""Prep, pretraining, evaluation and export as one chain of jobs that ends, well or not."""

from pathlib import Path

import pytest
from cluster import Cluster
from judged import last_figures
from slurm_runs import ENV, RECIPE, STEPS, events, overrides, wait_for_step

pytestmark = pytest.mark.slurm

CHAIN = {
    **ENV,
    "SBATCH_ACCOUNT": "none",
    "SBATCH_PARTITION": "main",
    "RANKS_PER_NODE": "1",
}
CORPUS = "data_prep/demo_corpus/emoji.parquet"
FOOD = "\"group\" = 'food & drink' AND artist IN ('noto', 'fluent3d') AND split = 'train'"


def jobs_of(printed: str) -> dict[str, str]:
    """Job ids by link."""
    return dict(line.split() for line in printed.splitlines())


@pytest.mark.soak
def test_a_chain_ends_in_an_exported_model_although_training_was_interrupted(
    cluster: Cluster, tiny_dataset: Path, tiny_evaluation_set: Path, tmp_path: Path
):
    dataset, run_dir = tmp_path / "dataset", tmp_path / "run"
    tokenizer = tiny_dataset / "tokenizer.model"
    printed = cluster.run(
        *("slurm/pipeline.sh", CORPUS, dataset, RECIPE, run_dir),
        *overrides(dataset, run_dir, "--evaluation.sets", f"{{held_out: {tiny_evaluation_set}}}"),
        *("--", "--tokenizer", tokenizer, "--where", FOOD, "--tiers", "full:95"),
        *("--caption", "label={caption}"),
        env=CHAIN,
    )
    jobs = jobs_of(printed)
    assert list(jobs) == ["prep", "pretrain", "evaluate", "export"]
    wait_for_step(cluster, jobs["pretrain"], run_dir, 20)
    cluster.run("scancel", "--batch", "--signal=USR1", jobs["pretrain"], env={})

    for name, job_id in jobs.items():
        job = cluster.ended(job_id)
        assert job.completed, f"{name}: {job.log}"
        assert job.restarts == (name == "pretrain")
    assert len(events(run_dir, "step")) > STEPS
    assert last_figures(run_dir / "evaluated.json") == last_figures(run_dir / "evaluation.json")
    assert list((run_dir / "export").glob("*.safetensors"))


def test_a_chain_with_a_failing_link_leaves_nothing_pending(cluster: Cluster, tmp_path: Path):
    printed = cluster.run(
        *("slurm/pipeline.sh", "nowhere.parquet", tmp_path / "dataset", RECIPE, tmp_path / "run"),
        *("--evaluation.abilities", "true"),
        env=CHAIN,
    )
    jobs = jobs_of(printed)
    prep = cluster.ended(jobs.pop("prep"))
    assert prep.states == ["FAILED"] and prep.exit_codes == [2], prep.log
    assert "nowhere.parquet" in prep.log
    assert len(jobs) == 3
    for job_id in jobs.values():
        assert cluster.ended(job_id).states == ["CANCELLED"]
