"""Presets are the published shapes, and what is given beside one wins."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from vocabularies import of_size

from pretrain.base.run_files import RECIPE_FILE
from pretrain.models.build import build_model
from pretrain.models.options import ModelOptions
from pretrain.models.presets import PRESETS
from pretrain.recipe.parsing import parse, read_recipe
from pretrain.recipe.stages import plan_stages
from pretrain.run.continuation import list_changes, list_fixed
from pretrain.tokens.options import TokenOptions

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml"), "--data.train", "x"]
SIZES = ["--stages.reduced.tokens.image_px", "64", "--stages.full.tokens.image_px", "64"]

# Width, depth, heads and hidden width of the MLP, image then text; shared width. Typed from CLIPA's
# released configurations (clipa_torch/open_clip/model_configs, clipa_jax/models, the t5x branch).
PUBLISHED = {
    "S/16": ((384, 12, 6, 1536), (384, 12, 6, 1536), 384),
    "B/16": ((768, 12, 12, 3072), (512, 12, 8, 2048), 512),
    "L/16": ((1024, 24, 16, 4096), (768, 12, 12, 3072), 768),
    "L/14": ((1024, 24, 16, 4096), (768, 12, 12, 3072), 768),
    "H/14": ((1280, 32, 16, 5120), (1024, 24, 16, 4096), 1024),
    "g/14": ((1408, 40, 16, 6144), (1280, 32, 20, 5120), 1280),
    "bigG/14": ((1664, 48, 16, 8192), (1280, 32, 20, 5120), 1280),
}
# Million parameters of the image and the text tower at 49,408 pieces and contexts of 32 to 77
# (CLIPA's, by an independent count); none is known of g/14.
MILLIONS = {
    "S/16": (21.8, 40.4),
    "B/16": (86.2, 63.4),
    "L/16": (304, 124),
    "L/14": (304, 124),
    "H/14": (632, 354),
    "bigG/14": (1845, 695),
}


def model_of(*options: str) -> ModelOptions:
    return parse([*TINY, "--run_dir", "y", *SIZES, *options])[0].model


def shape(tower) -> tuple[int, int, int, int]:
    return tower.width, tower.depth, tower.heads, int(tower.width * tower.mlp_ratio)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_shape(name):
    side = str(8 * int(name.split("/")[1]))
    sizes = [word for stage in ("reduced", "full") for word in
             (f"--stages.{stage}.tokens.image_px", side)]  # fmt: skip
    model = model_of("--model.preset", name, *sizes)
    assert (shape(model.image), shape(model.text), model.embed_dim) == PUBLISHED[name]
    assert model.image.patch_px == int(name.split("/")[1])
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("B/16", "ViT-B-16"), ("L/16", "ViT-L-16"), ("L/14", "ViT-L-14-CLIPA"),
     ("H/14", "ViT-H-14-CLIPA"), ("bigG/14", "ViT-bigG-14-CLIPA")],
)  # fmt: skip
def test_a_preset_has_open_clips_shape(name, theirs):
    config = open_clip.get_model_config(theirs)
    image, text, mine = config["vision_cfg"], config["text_cfg"], PRESETS[name]
    width = image["width"]
    assert mine["embed_dim"] == config["embed_dim"]
    assert mine["image"]["patch_px"] == image["patch_size"]
    assert mine["image"]["heads"] == width // image.get("head_width", 64)
    for side, value in (("image", image), ("text", text)):
        assert (mine[side]["width"], mine[side]["depth"]) == (value["width"], value["layers"])
    assert int(width * mine["image"]["mlp_ratio"]) == int(width * image.get("mlp_ratio", 4.0))
    assert mine["text"]["heads"] == text["heads"] and mine["text"]["mlp_ratio"] == 4.0


@pytest.mark.parametrize("name", MILLIONS)
def test_a_preset_has_the_published_number_of_parameters(name):
    raw = {side: PRESETS[name][side] for side in ("image", "text")}
    defaults = ModelOptions()
    options = ModelOptions(
        image=type(defaults.image)(**raw["image"]),
        text=type(defaults.text)(**raw["text"]),
        embed_dim=PRESETS[name]["embed_dim"],
    )
    with torch.device("meta"):
        model = build_model(
            options,
            tokens=TokenOptions(image_px=16 * options.image.patch_px, text_tokens=77),
            vocabulary=of_size(49_408),
            device=torch.device("meta"),
        )
    counts = [
        sum(p.numel() for n, p in model.named_parameters() if n.startswith(side)) / 1e6
        for side in ("image", "text")
    ]
    for mine, published in zip(counts, MILLIONS[name], strict=True):
        assert abs(mine / published - 1) < 0.01, f"{counts} million, published {MILLIONS[name]}"


def test_what_is_said_beside_a_preset_wins_wherever_it_stands(tmp_path):
    named, small = tmp_path / "named.yaml", tmp_path / "small.yaml"
    named.write_text("model: {preset: L/16, image: {pool: cls, depth: 3}}\n")
    small.write_text("model: {preset: S/16}\n")
    one = model_of("--config", str(named))
    assert (one.image.width, one.image.depth, one.image.pool) == (1024, 3, "cls")
    assert (one.text.width, one.embed_dim) == (768, 768)
    for order in (1, -1):  # an option before the preset counts like one behind it
        pairs = [("--model.preset", "B/16"), ("--model.image.depth", "5")][::order]
        model = model_of(*(word for pair in pairs for word in pair))
        assert (model.image.width, model.image.depth) == (768, 5)
    # A later source's preset replaces an earlier one's shape, whichever way it is written.
    for later in (["--config", str(small)], ["--model.preset", "S/16"], ["--model.preset=S/16"]):
        model = model_of("--config", str(named), *later)
        assert (model.image.width, model.image.depth, model.image.pool) == (384, 12, "cls")
    # What is typed counts over files, wherever it stands.
    assert model_of("--model.preset", "S/16", f"--config={named}").image.width == 384


def test_a_preset_is_gone_where_its_numbers_stand(tmp_path, monkeypatch):
    """A run folder holds the numbers, so that another meaning of the name changes no run."""
    options = [*TINY, *SIZES, "--run_dir", str(tmp_path), "--model.preset", "S/16"]
    recipe, resolved = parse(options)
    (tmp_path / RECIPE_FILE).write_text(resolved)
    stored = yaml.safe_load(resolved)["model"]
    assert (stored["preset"], stored["image"]["width"], stored["text"]["heads"]) == (None, 384, 6)
    stages = plan_stages(recipe.stages, 1000)
    fixed = json.loads(json.dumps(list_fixed(recipe, stages, "fp32")))
    monkeypatch.setitem(PRESETS, "S/16", {**PRESETS["S/16"], "embed_dim": 77})
    assert read_recipe(tmp_path) == recipe
    again, _ = parse(["--config", str(tmp_path / RECIPE_FILE)])
    assert again == recipe and list_changes(fixed, again, stages, "fp32") == []
    changed, _ = parse(options)
    assert list_changes(fixed, changed, stages, "fp32") == ["model.embed_dim=77 (was 384)"]
    del fixed["model"]["preset"]  # a run folder from before presets
    assert list_changes(fixed, recipe, stages, "fp32") == []


@pytest.mark.parametrize("options", [["--model.preset", "B/15"], ["--model", "{preset: B/16}"]])
def test_a_preset_that_would_be_lost_is_refused(options):
    with pytest.raises(ValueError, match=r"model\.preset") as raised:
        model_of(*options)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="was not read"):
        ModelOptions(preset="B/16")
