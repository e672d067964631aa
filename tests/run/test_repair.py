"""A run can be repaired: what has begun is fixed by its values, all else can change at a resume."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from forked_runs import train
from tiny_datasets import build_food
from tiny_runs import ROOT

from pretrain.base.lock import LOCK_FILE, Lock
from pretrain.recipe.parsing import parse, read_recipe
from pretrain.recipe.stages import plan_stages
from pretrain.run.continuation import list_changes, list_fixed


def losses(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {e["step"]: e["loss"] for e in map(json.loads, lines) if e["event"] == "step"}


@pytest.fixture(scope="module")
def finished(tiny_dataset, tmp_path_factory) -> Path:
    """A run of 6 + 4 steps with all its checkpoints: at 3, 6 (a stage's end), 9 and 10."""
    run_dir = tmp_path_factory.mktemp("repair") / "run"
    ended = train(run_dir, tiny_dataset, "--checkpoint.keep", "9")
    assert ended.code == 0, ended.output
    return run_dir


def standing(finished: Path, folder: Path, step: int) -> Path:
    """A copy of the run as it was when its newest checkpoint was that of `step`."""
    run_dir = folder / "run"
    shutil.copytree(finished, run_dir)
    for path in (run_dir / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return run_dir


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (3, ("--stages.full.steps", "2", "--stages.reduced.micro_batch_samples", "8")),
        (6, ("--stages.full.base_learning_rate", "1e-3", "--engine.ds_config",
             "ds_configs/zero2.json")),
        (9, ("--engine.ds_config", "ds_configs/zero3.json")),
        (6, ("--stages.full.tokens.image_px", "32", "--data.loader.workers", "1")),
        (9, ("--stages.full.micro_batch_samples", "4", "--checkpoint.every_steps", "2",
             "--engine.checkpoint_image", "true")),
    ],
)  # fmt: skip
def test_execution_and_stages_to_come_can_change(finished, tiny_dataset, tmp_path, step, options):
    run_dir = standing(finished, tmp_path, step)
    fresh = tmp_path / "fresh"
    for one in (run_dir, fresh):
        ended = train(one, tiny_dataset, *options)
        assert ended.code == 0, ended.output
    repaired, anew = losses(run_dir), losses(fresh)
    assert repaired.keys() == anew.keys()
    worst = max(abs(repaired[s] - anew[s]) for s in anew)
    assert worst < 2e-5, f"largest difference of a loss: {worst}"
    if "--stages.full.base_learning_rate" in options:
        assert repaired[8] != losses(finished)[8]


@pytest.mark.parametrize(
    ("step", "options", "named"),
    [
        (3, ("--stages.reduced.base_learning_rate", "1e-3"),
         "stages.reduced.base_learning_rate=0.001 (was 0.016)"),
        (9, ("--stages.reduced.tokens.text_tokens", "7"),
         "stages.reduced.tokens.text_tokens=7 (was 6)"),
        (9, ("--stages.full.steps", "5"), "stages.full.steps=5 (was 4)"),
        (9, ("--stages.full.steps", "null", "--stages.full.samples", "100"),
         "stages.full.steps=7 (was 4)"),
        (9, ("--optimizer.eps", "1e-8"), "optimizer.eps=1e-08 (was 1e-06)"),
        (9, ("--engine.precision", "bf16"), "engine.precision=bf16 (was fp32)"),
        (9, ("--data.normalisation", "openai"), "data.normalisation=openai (was imagenet)"),
        (3, ("--model.image.mlp_ratio", "2"), "model.image.mlp_ratio=2.0 (was 4.0)"),
    ],
)  # fmt: skip
def test_what_has_begun_is_fixed_and_the_change_is_named(
    finished, tiny_dataset, tmp_path, step, options, named
):
    run_dir = standing(finished, tmp_path, step)
    ended = train(run_dir, tiny_dataset, *options)
    assert ended.code == 2
    errors = [line for line in ended.output.splitlines() if "error" in line]
    assert len(errors) == 1 and named in errors[0], ended.output


def test_another_dataset_is_refused(finished, tiny_evaluation_set, tmp_path):
    ended = train(standing(finished, tmp_path, 9), tiny_evaluation_set)
    assert ended.code == 2 and "was trained on another dataset than" in ended.output


def test_each_stage_reads_its_own_tier_and_both_are_checked_first(tmp_path):
    dataset = build_food(tmp_path / "tiers", "artist = 'noto'", "--tiers", "32:95,full:95")
    options = ("--stages.reduced.tier", "32", "--stages.full.global_batch_samples", "32")
    ended = train(tmp_path / "run", dataset, *options)
    assert ended.code == 0, ended.output
    plain = train(tmp_path / "plain", dataset, *options[2:])
    assert plain.code == 0, plain.output
    ours, theirs = losses(tmp_path / "run"), losses(tmp_path / "plain")
    assert ours[1] != theirs[1] and abs(ours[1] - theirs[1]) < 0.3  # of smaller pictures
    shard = dataset / "32/00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    (dataset / "32/index.npy").touch()
    ended = train(tmp_path / "cut", dataset, "--stages.full.tier", "32")  # begins last
    assert ended.code == 2 and "32/00001.tar" in ended.output
    assert not (tmp_path / "cut/metrics.jsonl").exists()


def test_a_temperature_rate_of_zero_freezes_the_temperature(tiny_dataset, tmp_path):
    ended = train(tmp_path / "run", tiny_dataset, "--temperature_base_learning_rate", "0.0")
    assert ended.code == 0, ended.output
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    steps = [e for e in map(json.loads, lines) if e["event"] == "step"]
    assert {round(e["logit_scale"], 4) for e in steps} == {round(1 / 0.07, 4)}


def test_the_same_length_in_another_unit_is_the_same_run(finished, tiny_dataset, tmp_path):
    run_dir = standing(finished, tmp_path, 9)
    ended = train(
        run_dir, tiny_dataset, "--stages.full.steps", "null", "--stages.full.samples", "64"
    )
    assert ended.code == 0, ended.output
    assert losses(run_dir) == losses(finished)


def test_an_option_that_only_one_side_knows_is_a_change():
    tiny = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml")]
    recipe, _ = parse(tiny)
    stages = plan_stages(recipe.stages, 230)
    fixed = json.loads(json.dumps(list_fixed(recipe, stages[:1], "fp32")))
    assert list_changes(fixed, recipe, stages, "fp32") == []
    del fixed["optimizer"]["muon_momentum"]
    fixed["model"]["image"]["an_option_that_went"] = 3
    assert list_changes(fixed, recipe, stages, "fp32") == [
        "model.image.an_option_that_went=None (was 3)",
        "optimizer.muon_momentum=0.95 (was None)",
    ]
    swapped = [dataclasses.replace(stages[0], name="first"), stages[1]]
    assert "stages ['first']" in list_changes(fixed, recipe, swapped, "fp32")[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("optimizer.decay_tables", "true"),
        ("optimizer.first_moment", "bf16"),
        ("loss.softmax.max_scale", "null"),
        ("stages.reduced.schedule.warmup_from_zero", "true"),
        ("stages.reduced.fixed_positions", "true"),
        ("stages.reduced.tokens.syntax_unit", "word"),
        ("stages.reduced.crop.interpolation", "bilinear"),
        ("stages.reduced.augment.hue", "0.08"),
        ("stages.reduced.augment.jitter", "0.8"),
    ],
)
def test_what_a_published_run_did_is_fixed_for_a_run_folder(option, value):
    learned = ["--model.image.positions", "learned_from_sincos"]
    tiny = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml"), *learned]
    recipe, other = parse(tiny)[0], parse([*tiny, f"--{option}", value])[0]
    stages = plan_stages(recipe.stages, 230)
    fixed = json.loads(json.dumps(list_fixed(recipe, stages[:1], "fp32")))
    changed = list_changes(fixed, other, plan_stages(other.stages, 230), "fp32")
    assert [change.split("=")[0] for change in changed] == [option]


def test_a_recipe_of_another_version_is_named_with_its_remedy(finished, tmp_path):
    run_dir = standing(finished, tmp_path, 9)
    content = (run_dir / "recipe.yaml").read_text()
    assert read_recipe(run_dir).seed == 0
    (run_dir / "recipe.yaml").write_text(content + "an_option_that_went: 3\n")
    with pytest.raises(ValueError, match=r"an_option_that_went.*pretrain\.train") as refusal:
        read_recipe(run_dir)
    assert "\n" not in str(refusal.value) and "recipe.yaml" in str(refusal.value)


def test_a_linked_lock_is_refused_and_its_file_is_kept(tiny_dataset, tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "mine")
    ended = train(tmp_path / "run", tiny_dataset)
    assert ended.code == 2 and "cannot be locked (a link is not followed)" in ended.output
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_run_folder_has_one_owner(finished, tiny_dataset, tmp_path):
    run_dir = standing(finished, tmp_path, 9)
    before = (run_dir / "metrics.jsonl").read_text()
    lock = Lock(run_dir / LOCK_FILE)
    lock.sign()
    ended = train(run_dir, tiny_dataset)
    assert ended.code == 2 and "is being trained by another run (process" in ended.output
    assert (run_dir / "metrics.jsonl").read_text() == before
    lock.release()
    assert train(run_dir, tiny_dataset).code == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--stages.full.tier", "160"), "stages.full.tier='160'"),
        (("--stages.full.micro_batch_samples", "5"), "stages.full.micro_batch_samples=5"),
        (("--stages.full.global_batch_samples", "1024"), "has 230 samples"),
        (("--stages.full.steps", "null", "--stages.full.epochs", "0.1",
          "--stages.full.warmup_steps", "9"), "stages.full.warmup_steps=9"),
        (("--data.caption_weights", "{label: -1}"), "data.caption_weights"),
        (("--engine.ds_config", "ds_configs/none.json"), "ds_configs"),
        (("--evaluation.sets", "{held: /nowhere}"), "evaluation.sets.held"),
    ],
)  # fmt: skip
def test_a_mistake_in_any_stage_is_found_before_the_first_step(
    tiny_dataset, tmp_path, options, named
):
    ended = train(tmp_path / "run", tiny_dataset, *options)
    assert ended.code == 2, ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and named in errors[0], ended.output
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_updates_that_are_not_finite_are_skipped_counted_and_bounded(tiny_dataset, tmp_path):
    ended = train(
        *(tmp_path / "run", tiny_dataset, "--stages.reduced.base_learning_rate", "1e37"),
        *("--stages.reduced.warmup_steps", "0", "--engine.max_skipped_in_a_row", "2"),
    )
    assert ended.code == 1
    errors = [line for line in ended.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "engine.max_skipped_in_a_row=2" in errors[0], ended.output
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    skipped = [e for e in map(json.loads, lines) if e["event"] == "skipped_update"]
    assert [e["in_a_row"] for e in skipped] == [1, 2, 3]


def test_a_stage_is_as_long_as_its_samples_or_epochs_say():
    recipe, _ = parse(
        [
            *("--config", str(ROOT / "pretrain/recipes/tiny.yaml")),
            *("--stages.reduced.steps", "null", "--stages.reduced.epochs", "2.5"),
            *("--stages.reduced.warmup_steps", "null", "--stages.reduced.warmup_share", "0.1"),
            *("--stages.full.steps", "null", "--stages.full.samples", "33"),
        ]
    )
    reduced, full = plan_stages(recipe.stages, 230)
    assert (reduced.steps, reduced.warmup_steps) == (36, 4)  # 575 samples in batches of 16
    assert (full.steps, full.first_sample) == (3, 576)
