"""A run with caption classification: its layer is carried over, resumed, and left at home."""

import json
import shutil

import pytest
from commands import evaluate, export
from forked_runs import train
from safetensors import safe_open

from pretrain.base.run_files import METRICS_FILE
from pretrain.export.average import average_models
from pretrain.export.options import AverageOptions
from pretrain.run.stage_weights import read_stage_weights

OPTIONS = ["--loss.classification_weight", "0.5", "--checkpoint.every_steps", "1"]
OPTIONS += ["--checkpoint.keep", "99", "--stages.full.micro_batch_samples", "4"]
LAYER = {f"classifier.{name}" for name in ("linear.weight", "linear.bias")}
LAYER |= {f"classifier.{name}" for name in ("norm.weight", "norm.bias")}


def steps(run_dir) -> list[tuple]:
    events = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    kept = ("stage", "step", "loss", "classification_loss", "grad_norm", "logit_scale")
    return [tuple(e[k] for k in kept) for e in events if e["event"] == "step"]


def names(folder) -> set[str]:
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        return set(weights.keys())


@pytest.mark.parametrize("kind", ["softmax", pytest.param("sigmoid", marks=pytest.mark.soak)])
def test_its_layer_is_carried_over_resumed_and_not_exported(
    kind, tiny_dataset, tiny_evaluation_set, tmp_path
):
    run_dir = tmp_path / "run"
    options = [*OPTIONS, "--loss.kind", kind, "--evaluation.every_steps", "3"]
    options += ["--evaluation.sets", f"{{held_out: {tiny_evaluation_set}}}"]
    ended = train(run_dir, tiny_dataset, *options)
    assert ended.code == 0, ended.output
    undisturbed, theirs = steps(run_dir), read_stage_weights(run_dir, "full")[0]
    classified = [step[3] for step in undisturbed]
    print(f"{kind}: classification loss {classified[0]:.3f} → {classified[-1]:.3f}")
    assert set(theirs) > LAYER and len(set(classified)) == 10
    first = read_stage_weights(run_dir, "reduced")[0]
    moved = {name: float((theirs[name] - first[name]).abs().max()) for name in LAYER}
    # Four steps of at most 5e-4; weights drawn anew would be 0.18 and more away.
    assert all(0 < distance < 5e-3 for distance in moved.values()), moved

    # As if it had been killed in the middle of the second stage.
    for path in (run_dir / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > 8:
            shutil.rmtree(path)
    (run_dir / "stages/full.safetensors").unlink()
    ended = train(run_dir, tiny_dataset, *options)
    assert ended.code == 0, ended.output
    assert steps(run_dir) == undisturbed
    ours = read_stage_weights(run_dir, "full")[0]
    assert all(ours[name].equal(theirs[name]) for name in theirs) and ours.keys() == theirs.keys()

    # Exporting compares what the folder gives, loaded back, with the run's own features.
    for form in ("native", "transformers", "open_clip") if kind == "softmax" else ("native",):
        export(run_dir=run_dir, out=tmp_path / form, format=form)
        assert not any("classifier" in name for name in names(tmp_path / form))
    assert names(tmp_path / "native") == set(theirs) - LAYER
    average_models([run_dir, tmp_path / "native"], AverageOptions(out=tmp_path / "average"))
    assert names(tmp_path / "average") == set(theirs) - LAYER
    evaluate(model=run_dir, sets={"held_out": tiny_evaluation_set})
