"""An average of models is the average of their weights, and loads as any export."""

import math
import shutil

import pytest
import torch
from commands import export
from safetensors.torch import load_file

from pretrain.average import main
from pretrain.base.run_files import CHECKPOINTS
from pretrain.export.native import load
from pretrain.models.starting import WEIGHTS_FILE
from pretrain.run.checkpoint import read_weights


@pytest.fixture(scope="module")
def two(tiny_run, tmp_path_factory):
    """Exports of the tiny run, and of another model of its shape."""
    folder = tmp_path_factory.mktemp("averaged")
    export(run_dir=tiny_run, out=folder / "a", format="native")
    shutil.copytree(folder / "a", folder / "b")
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weights = {
        name: weight + 0.1 * torch.randn(weight.shape, generator=generator)
        for name, weight in load_file(folder / "a" / WEIGHTS_FILE).items()
    }
    save_file(weights, folder / "b" / WEIGHTS_FILE)
    config = (folder / "b/config.json").read_text()
    scale = load(folder / "a").logit_scale
    (folder / "b/config.json").write_text(config.replace(str(scale), str(4 * scale)))
    return folder / "a", folder / "b"


@pytest.mark.parametrize("alpha", [0.0, 0.25, None])
def test_two_models_by_their_shares(two, tmp_path, alpha, capsys):
    words = [] if alpha is None else ["--alpha", str(alpha)]
    assert main([*map(str, two), "--out", str(tmp_path / "out"), *words]) == 0
    share = 0.5 if alpha is None else alpha
    a, b = (load_file(path / WEIGHTS_FILE) for path in two)
    found = load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert found.keys() == a.keys()
    for name, weight in found.items():
        wanted = (1 - share) * a[name].double() + share * b[name].double()
        worst = float((weight.double() - wanted).abs().max())
        assert worst <= 1e-7 * max(1.0, float(wanted.abs().max())), f"{name}: {worst}"
    scales = [load(path).logit_scale for path in (*two, tmp_path / "out")]
    assert math.isclose(scales[2], scales[0] * 4**share, rel_tol=1e-9)
    assert f"{share:.4g} of {two[1]}" in capsys.readouterr().out


def test_checkpoints_of_a_run_and_its_end(tiny_run, tmp_path):
    checkpoints = sorted((tiny_run / CHECKPOINTS).iterdir())
    inside = [path for path in checkpoints if read_weights(path)[0]]
    last = load_file(sorted((tiny_run / "stages").glob("full.safetensors"))[0])
    alike = [
        path
        for path in inside
        if all(weight.shape == last[n].shape for n, weight in read_weights(path)[0].items())
    ]
    assert alike, checkpoints
    assert main([str(alike[-1]), str(tiny_run), "--out", str(tmp_path / "out")]) == 0
    begun = read_weights(alike[-1])[0]
    for name, weight in load_file(tmp_path / "out" / WEIGHTS_FILE).items():
        wanted = (begun[name].double() + last[name].double()) / 2
        assert torch.allclose(weight.double(), wanted, rtol=0, atol=1e-6), name


def test_what_cannot_be_averaged_is_one_line(two, tmp_path, capsys):
    def refused(*words: object) -> str:
        assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    other = tmp_path / "other"
    shutil.copytree(two[0], other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"imagenet"', '"openai"'))
    assert "has normalisation openai" in refused(two[0], other)
    assert "two or more" in refused(two[0])
    assert "not an exported model" in refused(two[0], tmp_path)
    assert "--alpha 0.5 with 3 models" in refused(*two, two[0], "--alpha", "0.5")
    assert "from 0 to 1" in refused(*two, "--alpha", "1.5")
