"""The sbatch templates do on real Slurm what the same commands do without it."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster import Cluster
from PIL import Image

from pretrain.data.dataset import Dataset

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "pretrain/recipes/tiny.yaml"
SITE = ("--account=none", "--partition=main")
ENV = {
    "VENV": sys.prefix,
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}
TOLERANCE = 1e-6  # fp32; two ranks either way, so only the order of the network's sums may differ


@pytest.fixture(scope="module")
def losses_without_slurm(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """{samples_seen: loss} of two ranks of plain torchrun on this host."""
    run_dir = tmp_path_factory.mktemp("without_slurm") / "run"
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "pretrain.train", "--config", RECIPE, *overrides(tiny_dataset, run_dir)),
        ],
        cwd=ROOT,
        env={**os.environ, **ENV},
        check=True,
    )
    return read_losses(run_dir)


def overrides(dataset: Path, run_dir: Path) -> list[str]:
    return ["--data.train", str(dataset), "--run_dir", str(run_dir), "--log.every_steps", "1"]


def read_losses(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {e["samples_seen"]: e["loss"] for e in events if e["event"] == "step"}


@pytest.mark.parametrize(
    ("template", "ranks_per_node"), [("pretrain_1node", 2), ("pretrain_multinode", 1)]
)
def test_pretraining_by_template_gives_the_losses_of_plain_torchrun(
    cluster: Cluster,
    tiny_dataset: Path,
    losses_without_slurm: dict[int, float],
    tmp_path: Path,
    template: str,
    ranks_per_node: int,
):
    job = cluster.submit(
        *(*SITE, f"slurm/{template}.sbatch", RECIPE, *overrides(tiny_dataset, tmp_path / "run")),
        env={**ENV, "RANKS_PER_NODE": str(ranks_per_node)},
    )
    assert job.completed, job.log
    losses = read_losses(tmp_path / "run")
    assert losses.keys() == losses_without_slurm.keys()
    assert len(losses) > 1
    worst = max(abs(losses[seen] - losses_without_slurm[seen]) for seen in losses)
    assert worst <= TOLERANCE, f"largest difference of a loss: {worst}"


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
