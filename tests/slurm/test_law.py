"""A sweep as an array of jobs, a cell each."""

import json
from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from slurm_runs import ENV, ROOT, SITE

pytestmark = [pytest.mark.slurm, pytest.mark.soak]


def test_an_array_trains_each_cell_and_writes_its_row(
    cluster: Cluster, tiny_dataset: Path, tiny_evaluation_set: Path, tmp_path: Path
):
    sweep = {
        "recipe": str(ROOT / "pretrain/recipes/tiny.yaml"),
        "runs": str(tmp_path / "runs"),
        "common": {
            "data": {"train": str(tiny_dataset)},
            "evaluation": {"sets": {"held_out": str(tiny_evaluation_set)}},
        },
        "sizes": {"w32": {"model": {"image": {"width": 32}}}},
        "image_tokens": [36, 16],
        "text_tokens": [12],
        "middle": {"size": "w32", "image_tokens": 16, "text_tokens": 12},
        "drawn_set": "held_out",
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    out = tmp_path / "out"
    job = cluster.submit(
        *("--array=0-1", *SITE, "slurm/law.sbatch", tmp_path / "sweep.yaml", out),
        env={**ENV, "RANKS_PER_NODE": "2"},
    )
    assert job.completed and len(job.states) == 2, job.log
    rows = {path.stem: json.loads(path.read_text()) for path in (out / "rows").glob("*.json")}
    assert sorted(rows) == ["w32_i16_t12_s0", "w32_i36_t12_s0"]
    for row in rows.values():
        assert row["samples"] == {"reduced": 6 * 16, "full": 4 * 16}
        assert row["machine"]["ranks"] == 2
