"""A run with the sigmoid loss: two stages, its bias trained, logged, resumed and exported."""

import json
import shutil

import pytest
import torch
from commands import export
from forked_runs import train

from pretrain.base.run_files import METRICS_FILE
from pretrain.run.stage_weights import read_stage_weights

SIGMOID = ["--loss.kind", "sigmoid", "--loss.sigmoid.initial_bias", "-5"]


def steps(run_dir) -> list[tuple]:
    events = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    kept = ("stage", "step", "loss", "grad_norm", "logit_scale", "logit_bias")
    return [tuple(e[k] for k in kept) for e in events if e["event"] == "step"]


def test_its_bias_is_trained_resumed_and_exported(tiny_dataset, tmp_path):
    run_dir = tmp_path / "run"
    options = [*SIGMOID, "--checkpoint.every_steps", "1", "--checkpoint.keep", "99"]
    ended = train(run_dir, tiny_dataset, *options)
    assert ended.code == 0, ended.output
    undisturbed, theirs = steps(run_dir), read_stage_weights(run_dir, "full")[1]
    biases = [step[-1] for step in undisturbed]
    assert len(biases) == 10 and len(set(biases)) > 7, biases
    assert biases[5] != -5 and biases[6] != -5, "the second stage begins where the first ended"

    # As if it had been killed in the middle of the second stage.
    for path in (run_dir / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > 8:
            shutil.rmtree(path)
    (run_dir / "stages/full.safetensors").unlink()
    ended = train(run_dir, tiny_dataset, *options)
    assert ended.code == 0, ended.output
    assert steps(run_dir) == undisturbed
    ours = read_stage_weights(run_dir, "full")[1]
    assert set(ours) == {"log_scale", "bias"}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    export(run_dir=run_dir, out=tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["logit_bias"] == pytest.approx(biases[-1])
    assert config["logit_bias"] == pytest.approx(float(theirs["bias"]))
