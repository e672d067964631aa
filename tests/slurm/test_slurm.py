"""The sbatch templates do on real Slurm what the same commands do without it."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster import Cluster
from PIL import Image
from slurm_runs import ENV, RECIPE, ROOT, SITE, assert_same_losses, start

from pretrain.dataset.reader import Dataset

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_pretraining_by_template_gives_the_losses_of_plain_torchrun(
    cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path, nodes: int
):
    job = cluster.ended(start(cluster, tiny_dataset, tmp_path / "run", nodes=nodes))
    assert job.completed, job.log
    assert_same_losses(tmp_path / "run", undisturbed)


def test_slices_join_to_the_dataset_of_one_build_after_one_of_them_failed(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    source = tmp_path / "the corpus.parquet"  # a space on purpose
    write_corpus(source, rows=13, seed=0)
    built, whole = tmp_path / "built", tmp_path / "whole"
    build = ("--source", source, "--tokenizer", tiny_dataset / "tokenizer.model")
    build += ("--tiers", "full:95", "--shard_samples", "5", "--tagger", "none")
    slices = (*SITE, "slurm/data_prep.sbatch", *build, "--out", built)
    merge = ("sbatch", "--parsable", *SITE, "--kill-on-invalid-dep=yes")

    env = {**ENV, "COUNT": "3"}
    first = cluster.submit("--array=0", *slices, env=env)
    assert first.completed and "share 0 of 3 is done: 1 of 3 tasks" in first.log, first.log
    obstacle = built / ".build/000001"
    obstacle.write_text("a file where the second slice needs a folder")
    array = cluster.start("--array=0-2", *slices, env=ENV)
    after = f"--dependency=afterok:{array}"
    joining = cluster.run(*merge, after, "slurm/data_prep_merge.sbatch", built, env=ENV).strip()
    job = cluster.ended(array)
    assert sorted(job.states) == ["COMPLETED", "COMPLETED", "FAILED"], job.log
    assert "000001" in job.log
    assert cluster.ended(joining).states == ["CANCELLED"]
    assert not (built / "manifest.json").exists()

    obstacle.unlink()
    again = cluster.start("--array=1", *slices, env=env)
    after = f"--dependency=afterok:{again}"
    joining = cluster.run(*merge, after, "slurm/data_prep_merge.sbatch", built, env=ENV).strip()
    assert cluster.ended(again).completed, cluster.log(again)
    joined = cluster.ended(joining)
    assert joined.completed and "everything is as its manifest says" in joined.log, joined.log
    assert_whole(built, samples=13)
    subprocess.run(
        [sys.executable, "-m", "data_prep", "build", *build, "--out", whole], cwd=ROOT, check=True
    )
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert sorted(p.relative_to(built) for p in built.rglob("*") if p.is_file()) == files
    for file in files:
        assert (built / file).read_bytes() == (whole / file).read_bytes(), file


def write_corpus(file: Path, *, rows: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    pictures = []
    for array in pixels:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    captions = [f"picture {row} of corpus {seed}" for row in range(rows)]
    pq.write_table(pa.table({"image": pictures, "caption": captions}), file)


def assert_whole(directory: Path, *, samples: int) -> None:
    """Every shard has the recorded sha256, every sample the recorded crc32."""
    dataset = Dataset(directory, "full")
    assert len(dataset) == samples
    for shard in dataset.manifest.tiers["full"].shards:
        found = hashlib.sha256((directory / shard.file).read_bytes()).hexdigest()
        assert found == shard.sha256
    for row in range(samples):
        dataset.read(row)
    dataset.close()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("pretrain_1node.sbatch",), "first argument is the recipe"),
        (("pretrain_1node.sbatch", "nowhere.yaml"), "no recipe nowhere.yaml"),
        (("pretrain_multinode.sbatch", "nowhere.yaml"), "no recipe nowhere.yaml"),
        (("data_prep.sbatch", "--out", "out"), "submit as an array"),
        (("embed.sbatch", "run", "data"), "submit as an array"),
        (("data_prep_merge.sbatch",), "afterok"),
        (("data_prep_merge.sbatch", "nowhere"), "nowhere has no build to join"),
    ],
)
def test_an_impossible_request_ends_the_job_with_the_reason(
    cluster: Cluster, request_: tuple[str, ...], message: str
):
    template, *arguments = request_
    job = cluster.submit(*SITE, f"slurm/{template}", *arguments, env=ENV)
    assert job.states == ["FAILED"]
    assert job.exit_codes == [2]
    assert message in job.log


def test_a_missing_python_environment_is_named(cluster: Cluster):
    job = cluster.submit(
        *SITE, "slurm/pretrain_1node.sbatch", RECIPE, env={**ENV, "VENV": "/nowhere"}
    )
    assert job.exit_codes == [2]
    assert "no Python environment at VENV=/nowhere" in job.log
