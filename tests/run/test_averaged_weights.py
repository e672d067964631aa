"""The averaged weights of a run: saved, judged and exported beside the plain ones; refused where a
run keeps none."""

import json

import pytest
import torch
from commands import evaluate, export
from forked_runs import train, trained
from judged import last_figures
from safetensors.torch import load_file
from tiny_runs import evaluation_options

from pretrain.base.run_files import METRICS_FILE
from pretrain.models.starting import WEIGHTS_FILE
from pretrain.report.results import result_tables
from pretrain.report.run_folder import read_run


@pytest.fixture(scope="module")
def run(tiny_dataset, tiny_evaluation_set, tmp_path_factory):
    """Run folder of the tiny recipe with an average."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    options = evaluation_options(tiny_evaluation_set)
    trained(folder, tiny_dataset, "--engine.ema", "0.9", *options)
    return folder


def test_the_export_holds_the_averaged_file(run, tmp_path, capsys):
    found = {}
    for kind in ("plain", "ema"):
        export(run_dir=run, out=tmp_path / kind, format="native", weights=kind)
        found[kind] = load_file(tmp_path / kind / WEIGHTS_FILE)
    assert "exported stage full, ema weights," in capsys.readouterr().out
    for kind, end in (("plain", ""), ("ema", ".ema")):
        file = load_file(run / "stages" / f"full{end}.safetensors")
        names = {name for name in file if not name.startswith("loss.")}
        assert names == found[kind].keys()
        assert all(torch.equal(file[name], found[kind][name]) for name in names)
    alike = [n for n in found["ema"] if torch.equal(found["ema"][n], found["plain"][n])]
    assert not alike, f"not averaged: {alike}"


def test_its_figures_stand_beside_the_plain_ones(run, tmp_path):
    figures = last_figures(run / "evaluation.json")
    places: dict[str, list] = {"held_out": [], "held_out.ema": []}
    for one in figures:
        places[one["set"]].append((one["task"], one["part"], one["name"]))
    assert places["held_out"] == places["held_out.ema"] != []
    evaluate(model=run, weights="ema", out=tmp_path / "later.json")
    averaged = [one for one in figures if one["set"] == "held_out.ema"]
    assert last_figures(tmp_path / "later.json") == averaged
    events = map(json.loads, (run / METRICS_FILE).read_text().splitlines())
    inside = [e for e in events if e["event"] == "evaluation" and e["step"] == 2]
    assert {one["set"] for event in inside for one in event["figures"]} == places.keys()
    assert [table.title for table in result_tables(read_run(run))] == ["held out", "held out.ema"]


def test_the_file_of_an_average_is_no_stage(run, capsys):
    with pytest.raises(SystemExit):
        export(run_dir=run, stage="full.ema")
    told = capsys.readouterr().err
    assert "'full.ema'" in told and "['full', 'reduced']" in told and told.count("\n") == 1


def test_a_damaged_file_is_refused_by_its_hash(run, tmp_path, capsys):
    file = run / "stages/full.ema.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SystemExit):
        export(run_dir=run, out=tmp_path / "out", weights="ema")
    file.write_bytes(content)
    told = capsys.readouterr().err
    assert "full.ema.safetensors differ from the sha256" in told and told.count("\n") == 1


@pytest.mark.parametrize("command", [evaluate, export])
def test_a_run_without_an_average_refuses_in_one_line(run, tmp_path, capsys, command):
    recipe = (run / "recipe.yaml").read_text()
    assert "ema: 0.9" in recipe
    (tmp_path / "recipe.yaml").write_text(recipe.replace("ema: 0.9", "ema: null"))
    with pytest.raises(SystemExit) as stopped:
        command(run_dir=tmp_path, weights="ema")
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.count("\n") == 1, told
    assert "--weights ema" in told and "without engine.ema" in told


def test_a_begun_run_keeps_its_decay(run, tiny_dataset, tiny_evaluation_set):
    options = evaluation_options(tiny_evaluation_set)
    ended = train(run, tiny_dataset, *options, "--engine.ema", "0.5")
    assert ended.code == 2 and "engine.ema=0.5 (was 0.9)" in ended.output, ended.output
