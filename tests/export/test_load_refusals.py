"""An export whose parts are damaged or made up does not load: one line names the file."""

import json
import shutil

import pytest
import torch
from commands import export
from safetensors.torch import load_file, save_file

from pretrain.export.native import load


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals") / "model"
    export(run_dir=tiny_run, out=folder)
    return folder


def without(key):
    return lambda config: config.pop(key)


def with_value(value, *path):
    def change(config):
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("tokenizer_sha256"), "tokenizer_sha256"),
        (without("model"), "model"),
        (without("vocabulary"), "vocabulary"),
        (with_value(1, "model", "unknown"), "unknown"),
        (with_value("32", "model", "image", "width"), "model"),
        (with_value(None, "model", "image", "gelu"), "model.image.gelu=None"),
        (with_value("cube", "model", "text", "pool"), "model.text.pool='cube'"),
        (with_value(2.5, "model", "image", "depth"), "model.image.depth=2.5"),
        (with_value("x", "model", "text", "causal"), "model.text.causal='x'"),
        (with_value(10**7, "model", "image", "depth"), "model.image.depth=10000000"),
        (with_value(float("nan"), "logit_scale"), "logit_scale"),
        (with_value("x", "logit_scale"), "logit_scale"),
        (with_value("x", "normalisation"), "normalisation"),
        (with_value([], "normalisation"), "normalisation"),
        (with_value(10**8, "text_tokens"), "text_tokens"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(exported, tmp_path, change, named):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named) as raised:
        load(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


def test_deep_json_and_weights_that_are_not_finite_are_one_line(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[3] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        load(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not whole JSON"):
        load(folder)
