"""The learning rate at every step, against tables computed by hand."""

from dataclasses import replace

import pytest
from tiny_runs import ROOT

from pretrain.engine.schedule import ScheduleOptions, learning_rate, peak_learning_rate
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import plan_stages

TINY = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml")]
WSD = "{kind: wsd, decay_share: 0.5}"


def rates(steps: int, warmup_steps: int, **schedule) -> list[float]:
    options = ScheduleOptions(**schedule)
    return [
        learning_rate(step=step, steps=steps, warmup_steps=warmup_steps, peak=2.0, schedule=options)
        for step in range(steps)
    ]


def test_cosine_is_a_linear_warmup_and_half_a_cosine():
    # peak x (step + 1) / warmup, then peak x (1 + cos(pi (step - warmup) / (steps - warmup))) / 2
    found = rates(110, 10)
    assert found[0] == pytest.approx(0.2)
    assert found[9] == pytest.approx(2.0)
    assert found[10] == pytest.approx(2.0)
    assert found[60] == pytest.approx(1.0)
    assert found[35] == pytest.approx(1.7071067811865475)  # 1 + cos(pi / 4)
    assert found[109] == pytest.approx(0.0004934396342684)  # 1 + cos(0.99 pi)
    assert rates(110, 0)[0] == pytest.approx(2.0)
    assert rates(110, 0)[55] == pytest.approx(1.0)
    assert peak_learning_rate(1e-3, 1024) == pytest.approx(4e-3)


def test_a_warmup_from_zero_is_big_visions():
    # big_vision's create_learning_rate_schedule: min(1, step / warmup) x half a cosine from warmup.
    found = rates(110, 10, warmup_from_zero=True)
    assert found[:11] == pytest.approx([0.2 * step for step in range(11)])
    assert found[10:] == rates(110, 10)[10:]
    assert rates(110, 0, warmup_from_zero=True) == rates(110, 0)
    assert rates(16, 4, kind="wsd", warmup_from_zero=True)[:5] == pytest.approx(
        [0, 0.5, 1.0, 1.5, 2.0]
    )


def test_warmup_stable_decay_by_hand():
    # 4 steps of warmup, 8 at the peak, then 4 of decay: 1 - sqrt(0, 1/4, 2/4, 3/4), times 2.
    flat = [0.5, 1.0, 1.5, 2.0] + [2.0] * 8
    sqrt = [2.0, 1.0, 0.5857864376269049, 0.2679491924311228]
    found = rates(16, 4, kind="wsd", decay_share=0.25)
    assert found == pytest.approx([*flat, *sqrt])
    found = rates(16, 4, kind="wsd", decay_share=0.25, decay="linear")
    assert found == pytest.approx([*flat, 2.0, 1.5, 1.0, 0.5])
    # The whole stage decays, without warmup.
    found = rates(4, 0, kind="wsd", decay_share=1.0, decay="linear")
    assert found == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_a_stage_of_a_recipe_has_its_own():
    recipe, resolved = parse([*TINY, "--stages.full.schedule", WSD])
    reduced, full = plan_stages(recipe.stages, 1000)
    # tiny.yaml: 4 steps, of which 1 of warmup; the last 2 decay.
    assert [full.schedule(step) for step in range(4)] == pytest.approx(
        [1, 1, 1, 0.2928932188134524]
    )
    assert reduced.options.schedule.kind == "cosine" and "kind: wsd" in resolved


# By hand: samples of the dataset, batch, steps.
@pytest.mark.parametrize(
    ("epochs", "dataset", "batch", "steps"),
    [
        (1.1, 100, 10, 11),
        (2.2, 100, 10, 22),
        (1.1, 400_000_000, 10_000, 44_000),
        (0.07, 10_000, 100, 7),
        (1.11, 100, 10, 12),  # 111 samples
        (1e-9, 1000, 10, 1),
        (3.0, 100, 40, 8),
    ],
)
def test_epochs_are_the_decimal_that_was_written(epochs, dataset, batch, steps):
    stage = parse(TINY)[0].stages["reduced"]
    stage = replace(stage, steps=None, epochs=epochs, warmup_steps=None, global_batch_samples=batch)
    assert plan_stages({"reduced": stage}, dataset)[0].steps == steps


def test_samples_beyond_what_floats_count_are_whole_steps():
    stage = replace(parse(TINY)[0].stages["reduced"], steps=None, global_batch_samples=10)
    planned = plan_stages({"reduced": replace(stage, samples=10**18 + 1)}, 100)
    assert planned[0].steps == 10**17 + 1


def test_shares_of_a_stage_are_the_decimals_that_were_written():
    # 57.5 rounded to even; floats make 57.49999999999999 of it.
    stage = replace(parse(TINY)[0].stages["reduced"], warmup_steps=None)
    of_100 = replace(stage, steps=100, warmup_share=0.575)
    assert plan_stages({"reduced": of_100}, 100)[0].warmup_steps == 58
    assert ScheduleOptions(kind="wsd", decay_share=0.575).decay_steps(100) == 58


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model.image.width", "2000000000"),
        ("model.image.width", "30"),
        ("model.image.depth", "100000000"),
        ("model.text.depth", "100000000"),
        ("model.text.mlp_ratio", "1e30"),
        ("model.embed_dim", "1000000000"),
        ("stages.full.tokens.image_px", "800000"),
        ("stages.full.tokens.text_tokens", "100000000"),
        ("stages.full.steps", str(10**30)),
        ("stages.full.global_batch_samples", str(10**12)),
    ],
)
def test_what_no_machine_can_hold_is_one_line_at_once(option, value):
    more = ["--model.image.heads", "2"] if "image.width" in option else []
    with pytest.raises(ValueError, match=rf"{option}={value}".replace("1e30", r"1e\+30")) as raised:
        parse([*TINY, f"--{option}", value, *more])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--stages.full.schedule.decay_share", "0"], r"stages\.full\.schedule\.decay_share=0"),
        (["--stages.full.schedule.kind", "step"], "cosine, wsd"),
        (["--stages.full.schedule", WSD, "--stages.full.warmup_steps", "4"],
         r"stages\.full\.warmup_steps=4 and the 2 steps of schedule\.decay_share=0\.5"),
        (["--stages.full.schedule", WSD, "--stages.full.warmup_steps", "null",
          "--stages.full.warmup_share", "0.6"], r"decay_share=0\.5 with stages\.full\.warmup"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(options, named):
    with pytest.raises(ValueError, match=named) as raised:
        parse([*TINY, *options])
    assert "\n" not in str(raised.value)
