"""The sbatch templates do on real Slurm what the same commands do without it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster import Cluster
from PIL import Image
from slurm_runs import ENV, RECIPE, SITE, assert_same_losses, start

from pretrain.data.dataset import Dataset

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_pretraining_by_template_gives_the_losses_of_plain_torchrun(
    cluster: Cluster, tiny_dataset: Path, undisturbed: Path, tmp_path: Path, nodes: int
):
    job = cluster.ended(start(cluster, tiny_dataset, tmp_path / "run", nodes=nodes))
    assert job.completed, job.log
    assert_same_losses(tmp_path / "run", undisturbed)


def test_data_prep_array_builds_a_whole_dataset_from_each_source(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
):
    sources = [tmp_path / "first corpus.parquet", tmp_path / "second.parquet"]  # a space on purpose
    for number, source in enumerate(sources):
        write_corpus(source, rows=6 + number, seed=number)
    (tmp_path / "sources.txt").write_text("".join(f"{source}\n" for source in sources))
    out = tmp_path / "out"
    tokenizer = tiny_dataset / "tokenizer.model"
    request = (
        *("--array=0-1", *SITE, "slurm/data_prep.sbatch", tmp_path / "sources.txt", out),
        *("--tokenizer", tokenizer, "--tiers", "full:95"),
    )

    job = cluster.submit(*request, env=ENV)
    assert job.completed and len(job.states) == 2, job.log
    for number in range(2):
        part = out / f"part-{number:05d}"
        assert_whole(part, samples=6 + number)
        assert (part / "tokenizer.model").read_bytes() == tokenizer.read_bytes()

    again = cluster.submit(*request, env=ENV)
    assert again.completed, again.log
    assert again.log.count("is finished and stays as it is") == 2, again.log


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
        (("data_prep.sbatch", "sources.txt", "out"), "submit as an array"),
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
