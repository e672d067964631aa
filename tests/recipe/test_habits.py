"""What people type from habit: another tool's names, another kind of length, a stage by dots."""

import re
import typing
from pathlib import Path

import pytest
from tiny_runs import ROOT

from pretrain.recipe.habits import HABITS
from pretrain.recipe.parsing import TRAIN, parse
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import StageOptions
from pretrain.train import main

OWN = ["--config", str(ROOT / "pretrain/recipes/own.yaml"), "--data.train", "D", "--run_dir", "R"]


@pytest.mark.parametrize("habit", HABITS)
def test_the_names_of_open_clip_lead_to_options_that_there_are(habit):
    hints = typing.get_type_hints(Recipe)
    assert habit not in hints, "it is a name here too"
    for dotted in re.findall(r"--([a-z_A-Z0-9]+(?:\.[a-zA-Z_0-9]+)*)", HABITS[habit]):
        if dotted.startswith(("source", "classification", "format", "no_local_rank")):
            continue  # of other commands
        kind: typing.Any = Recipe
        for part in dotted.split("."):
            if part == "NAME":
                kind = StageOptions
                continue
            kind = typing.get_type_hints(kind)[part]
            kind = next((one for one in typing.get_args(kind) if hasattr(one, "__mro__")), kind)
    with pytest.raises(ValueError, match="here it is ") as said:
        parse([*OWN, "--" + habit.replace("_", "-"), "3"])
    assert "\n" not in str(said.value)


def test_open_clips_own_options_are_known():
    """Each habit is an option of the installed open_clip's trainer."""
    params = pytest.importorskip("open_clip_train.params")
    text = Path(params.__file__).read_text()
    known = {name.replace("-", "_") for name in re.findall(r'"--([a-z0-9-]+)"', text)}
    assert not HABITS.keys() - known - {"force_image_size", "local_rank"}  # of others


def test_a_later_file_counts_option_by_option(tmp_path):
    """It speaks of one stage: the others stay, and their order."""
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(
        "stages: {full: {base_learning_rate: 1e-4, crop: {area_min: 0.7}}}\n"
        "data: {caption_weights: {a: 1, b: 2}}\nmodel: {image: {depth: 9}}\n"
    )
    two.write_text("data: {caption_weights: {c: 1}}\nstages: {full: {crop: {aspect_max: 1.2}}}\n")
    plain, _ = parse(OWN)
    recipe, _ = parse([*OWN, "--config", str(one), "--config", str(two), "--model.image.heads=2"])
    assert list(recipe.stages) == ["reduced", "full"]
    assert recipe.stages["reduced"] == plain.stages["reduced"]
    full = recipe.stages["full"]
    assert (full.base_learning_rate, full.crop.area_min, full.crop.aspect_max) == (1e-4, 0.7, 1.2)
    assert full.tokens == plain.stages["full"].tokens
    assert recipe.data.caption_weights == {"c": 1}  # names are no options: replaced whole
    image = recipe.model.image
    assert (image.depth, image.heads, image.width) == (9, 2, plain.model.image.width)
    two.write_text("stages: {reduced: null}\n")
    assert list(parse([*OWN, "--config", str(two)])[0].stages) == ["full"]


@pytest.mark.parametrize("kind", ["steps", "samples"])
def test_a_length_that_is_typed_replaces_the_recipes(kind, tmp_path):
    recipe, text = parse([*OWN, f"--stages.full.{kind}", "300", "--stages.full.warmup_steps=2"])
    assert recipe.stages["full"].length == (kind, 300)
    assert (recipe.stages["full"].warmup_steps, recipe.stages["full"].warmup_share) == (2, None)
    assert recipe.stages["reduced"].length == ("epochs", 30)
    later = tmp_path / "later.yaml"
    later.write_text(f"stages: {{full: {{{kind}: 300, warmup_steps: 2}}}}\n")
    assert parse([*OWN, "--config", str(later)])[1] == text
    with pytest.raises(ValueError, match="give exactly one of them"):
        parse([*OWN, "--stages.full.steps", "3", "--stages.full.epochs", "1"])


def test_a_new_stage_is_named_by_dots():
    new = {
        "steps": "7",
        "global-batch-samples": "64",
        "base_learning_rate": "1e-4",
        "tokens.image_px": "160",
        "tokens.text_tokens": "32",
        "crop.area_min": "0.9",
    }
    words = [word for name, value in new.items() for word in (f"--stages.tune.{name}", value)]
    recipe, _ = parse([*OWN, *words])
    assert list(recipe.stages) == ["reduced", "full", "tune"]
    tune = recipe.stages["tune"]
    assert (tune.steps, tune.global_batch_samples, tune.crop.area_min) == (7, 64, 0.9)
    with pytest.raises(ValueError, match=r"no stages\.ful,.*'full'.* still needs .*image_px"):
        parse([*OWN, "--stages.ful.steps", "3"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer", "lion"], "a mapping of its options (.kind, .beta1"),
        (["--optimizer.kind", "lion"], "give adamw, muon; CONTRIBUTING.md says how one is added"),
        (["--model", "ViT-B-16"], "ViT-B-16: here it is --model.preset B/16"),
        (["--model", "big"], "a mapping of its options (.preset"),
        (["--loss.kind", "cloob"], "give softmax, sigmoid; CONTRIBUTING.md"),
    ],
)
def test_kinds_that_there_are_not_lead_on(words, said, capsys):
    assert main([*OWN, *words]) == 2
    assert said in capsys.readouterr().err
    assert TRAIN.program == "python -m pretrain.train"
