"""The benchmark of the train step measures all ways of one shape, and the table of a GPU's check
holds on this CPU."""

import json
import os
import subprocess
import sys

import pytest
from tiny_runs import ROOT

# Benchmarks are no part of the product: `make soak` runs what measures with them.
pytestmark = pytest.mark.soak


def test_every_way_is_measured_in_turn(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.train_step", "--precision", "fp32"]
    command += ["--rounds", "2", "--steps", "1", "--batch", "32", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = {row["way"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["ours", "ours in 4", "bare", "open_clip"]
    assert rows["ours"]["to_ours"] == rows["ours"]["cpu_to_ours"] == 1
    for row in rows.values():
        assert row["batch"] == 32 and row["images_per_s"] > 0 and 0 < row["mfu"] < 1
    # Quick work on a busy machine: an order of magnitude, not the figure.
    assert rows["bare"]["to_ours"] < 6 and rows["ours in 4"]["to_ours"] > 0.1


@pytest.mark.soak
def test_the_check_of_a_gpu_passes_on_this_cpu():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, "2", "tests/cuda_check.py", "--cases", "adamw"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gloo, 2 ranks" in done.stdout and "all passed" in done.stdout
