"""A run killed at any file-system call of its saves, stage ends and evaluations loses nothing."""

import os
import re
import subprocess
import sys

import pytest
from dataset_copies import damage
from tiny_runs import ROOT, evaluation_options

OPTIONS = [
    *("--config", "pretrain/recipes/tiny.yaml", "--data.loader.workers", "0"),
    *("--log.tensorboard", "false", "--stages.full.tokens.image_px", "40"),
]


def kill_at(folder, dataset, evaluation_set, count: int, *more: str) -> tuple[int, int]:
    """(calls of a run, trials that were equal)."""
    command = [
        *(sys.executable, "tests/support/kill_at_every_call.py", folder, str(count), "--"),
        *OPTIONS,
        *("--data.train", dataset, *evaluation_options(evaluation_set), *more),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    found = re.search(r"calls (\d+), tried (\d+)", result.stdout)
    assert found, result.stdout
    return int(found[1]), int(found[2])


@pytest.mark.soak
def test_a_kill_at_some_calls_loses_nothing(copy, tiny_evaluation_set, tmp_path):
    """Neither numbers nor counts: some samples of this dataset are damaged."""
    damage(copy, list(range(0, 230, 9)))
    calls, tried = kill_at(tmp_path, copy, tiny_evaluation_set, 2)
    assert calls > 50 and tried >= 2


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--optimizer.kind", "muon", "--engine.precision", "bf16"),
        ("--engine.ds_config", "ds_configs/zero2.json", "--engine.precision", "bf16"),
        ("--engine.ds_config", "ds_configs/zero3.json", "--optimizer.kind", "muon"),
    ],
    ids=["adamw", "muon-bf16", "zero2-bf16", "zero3-muon"],
)
def test_a_kill_at_every_call_loses_nothing(tiny_dataset, tiny_evaluation_set, tmp_path, more):
    count = 0 if not more else 40
    calls, tried = kill_at(tmp_path, tiny_dataset, tiny_evaluation_set, count, *more)
    assert calls > 50 and tried >= (count or calls)
