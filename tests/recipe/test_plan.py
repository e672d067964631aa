"""The plan of a recipe: stages, budgets, forecasts, and what a mistake says."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vocabularies import of_size

from pretrain.models.build import build_model
from pretrain.models.in_open_clip import inexpressible
from pretrain.plan.__main__ import PLAN, main
from pretrain.plan.budget import PLACES, Candidate, Head, candidates, read_head
from pretrain.plan.command import plan
from pretrain.plan.estimate import StageEstimate, stage_estimate
from pretrain.plan.forecast import forecast, rates, shortfalls
from pretrain.plan.hardware import HARDWARE, Machine, hardware_of_device
from pretrain.plan.table import budget_table
from pretrain.plan.words import read
from pretrain.recipe.parsing import parse
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import plan_stages

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "pretrain/recipes/demo.yaml")
TINY = str(ROOT / "pretrain/recipes/tiny.yaml")


@pytest.mark.parametrize("locked", ["image", "text"])
def test_a_locked_stage_is_planned_as_the_real_model_runs(locked):
    """FLOPs by torch's counter over forward and backward, moments by the optimizer's own groups."""
    words = ["--config", TINY, "--stages.full.locked", locked]
    recipe, estimate, _ = planned(words, "--gpus", "1", "--gpu", "h100", stage=1)
    _, free, _ = planned(["--config", TINY], "--gpus", "1", "--gpu", "h100", stage=1)
    tokens = recipe.stages["full"].tokens
    real = build_model(
        recipe.model, tokens=tokens, vocabulary=of_size(1000), device=torch.device("cpu")
    )
    real.get_submodule(locked).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        features = real(torch.zeros(2, 3, 48, 48), torch.ones(2, 12, dtype=torch.int64))
        sum(feature.sum() for feature in features).backward()
    # The gradient with respect to the pictures, which no one asks for, is counted as computed.
    assert estimate.executed_flops == pytest.approx(counter.get_total_flops() / 2, rel=0.06)
    saved = free.executed_flops - estimate.executed_flops
    assert saved == pytest.approx(2 * getattr(estimate.flops, locked))
    assert sum(estimate.parameters.values()) == sum(free.parameters.values())
    trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert estimate.memory.fixed["optimizer"] == 12 * trained  # masters and two moments, one rank
    assert estimate.memory.per_sample < free.memory.per_sample


def test_layer_decay_changes_nothing_in_the_plan():
    words = ["--config", TINY, "--gpus", "1", "--gpu", "h100"]
    assert plan(*read(PLAN, [*words, "--stages.full.layer_decay", "0.7"])) == plan(
        *read(PLAN, words)
    )


def test_published_figures_are_read_from_the_head_alone():
    line = "# published: 67.8 % ImageNet-1k zero-shot, 628 A100-hours\n"
    line += "# data: LAION-400M, 400,000,000 pairs\n"
    figure = "67.8 % ImageNet-1k zero-shot, 628 A100-hours"
    assert read_head("# L/16\n" + line + "seed: 0\n") == Head(
        published=figure, accuracy=67.8, data="LAION-400M", samples=400_000_000
    )
    assert read_head("seed: 0\n" + line) == Head()
    assert read_head("# published: not published\n") == Head(published="not published")


def test_the_published_data_gives_the_disk_and_what_is_lacking_is_marked():
    def shown(name: str, *more: str) -> str:
        recipe = str(ROOT / f"pretrain/recipes/{name}.yaml")
        return plan(*read(PLAN, ["--config", recipe, "--gpus", "8", *more]))

    def disk(text: str) -> str:
        return next(line for line in text.splitlines() if line.startswith("disk"))

    given = shown("l16_i37t8", "--dataset_samples", "400000000")
    told = shown("l16_i37t8")
    assert disk(told).partition(" (")[0] == disk(given).partition(" (")[0]
    assert "LAION-400M" in disk(told) and "400,000,000" in disk(told)
    assert "69.3 % ImageNet-1k zero-shot, 826 A100-hours, on LAION-400M\n" in told
    lacking = "this recipe lacks the sample weights (--data.weights) for it"
    assert lacking in shown("b16_dynamics")
    assert lacking not in shown("b16_dynamics", "--data.weights", "by_cluster")
    ranked = plan(*read(PLAN, ["--gpus", "8", "--days", "30"])).splitlines()
    names = [line.split()[0] for line in ranked if line.startswith("  ")]
    assert not {"tiny", "demo"} & {*names} and names.index("b16_dynamics") > names.index("l14_84px")
    assert lacking in next(line for line in ranked if "b16_dynamics" in line)
    assert lacking not in ranked[-1]


def test_recipes_within_a_budget_are_ranked_by_accuracy(tmp_path):
    demo = Path(DEMO).read_text()
    for name, line in (
        ("plain", ""),
        ("good", "# published: 70 % x\n"),
        ("best", "# published: 71 % x\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(line + demo)
    (tmp_path / "own.yaml").write_text((ROOT / "pretrain/recipes/own.yaml").read_text())
    options, _ = read(PLAN, ["--gpu", "a100-80g", "--days", "3"])
    found = candidates(
        sorted(tmp_path.glob("*.yaml")), options.machine(), dataset_samples=None, vocab_size=100
    )
    assert [c.name for c in found] == ["best", "good", "plain", "own"]
    assert "dataset_samples" in found[-1].remark
    shown = budget_table(found, options.machine(), 72, "3 days")
    assert shown.splitlines()[-1].startswith("verdict: best (71 % x)")
    assert "not published" in shown
    head = Head(published="80 %", accuracy=80.0)
    slow = Candidate(name="slow", head=head, opens_in_open_clip=True, hours=73)
    late = budget_table([slow], options.machine(), 72, "3 days")
    assert "no recipe" in late.splitlines()[2] and "slow" in late.split("not within it:")[1]


def test_the_ranking_shows_disk_and_what_open_clip_opens():
    lines = plan(read(PLAN, ["--gpu", "A100", "--days", "30"])[0], []).splitlines()
    assert lines[1] == "within 30 days on 8 x a100-80g:"
    shown = {line.split()[0]: line for line in lines if line.startswith("  ") and "TB" in line}
    for name in ("b16_i50t16", "b16_siglip"):
        recipe = ROOT / f"pretrain/recipes/{name}.yaml"
        table = plan(*read(PLAN, ["--config", str(recipe)]))
        (disk,) = (line for line in table.splitlines() if line.startswith("disk"))
        tiers = sum(float(size) for size in re.findall(r"tier \S+ (\S+) TB", disk))
        told = float(re.search(r"(\S+) TB", shown[name])[1])
        assert told == pytest.approx(tiers, rel=0.02), (shown[name], disk)
    for name, line in shown.items():
        model = parse([*PLACES, "--config", str(ROOT / f"pretrain/recipes/{name}.yaml")])[0].model
        assert (" yes " in line) == (not inexpressible(model)), line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--gpuz", "3"], "did you mean 'gpu'"),
        (["--gpus", "x", "--days", "1"], "whole number"),
        (["--gpu", "tpu", "--days", "1"], "rtx4090"),
        (["--gpus", "0", "--days", "1"], "--gpus=0"),
        (["--hfu", "2", "--days", "1"], "--hfu 2"),
        ([], "--config RECIPE"),
        (["--cost", "5", "--gpu", "h100"], "--price_per_gpu_hour"),
        (["--days", "2", "--stages.full.steps", "3"], "--config"),
        (["--config", TINY, "--days", "2"], "leave out"),
        (["--config", TINY, "--gpus", "3"], "choose 15 or 18"),
        (["--config", TINY, "--stages.full.stepz", "3"], "did you mean 'steps'"),
        (["--config", str(ROOT / "pretrain/recipes/own.yaml")], "--dataset_samples"),
    ],
)
def test_a_mistake_is_one_line(words, named, capsys):
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0], lines


def test_a_plan_takes_the_recipes_options_and_says_what_does_not_fit():
    words = ["--config", TINY, "--gpus", "1", "--gpu", "cpu"]
    shown = plan(*read(PLAN, [*words, "--stages.full.steps", "9"]))
    assert "144" in shown and shown.splitlines()[-1].startswith("verdict: fits")
    small = plan(*read(PLAN, [*words, "--gpu_memory_gib", "0.001"]))
    assert "does not fit" in small.splitlines()[-1]
    assert "GiB of 0.0 (92% of 0.001 count as usable)" in small.splitlines()[-1]


def planned(
    words: list[str], *machine: str, stage: int = 0
) -> tuple[Recipe, StageEstimate, Machine]:
    options, _ = read(PLAN, [*machine])
    recipe, _ = parse(words)
    found = plan_stages(recipe.stages, 10_000)[stage]
    estimate = stage_estimate(recipe, found, options.machine(), vocab_size=1000)
    return recipe, estimate, options.machine()


def test_the_forecast_line_is_the_plan_and_speaks_of_time_only_where_it_is_known():
    _, estimate, machine = planned(["--config", DEMO], "--gpus", "2", "--gpu", "cpu")
    assert f"reduced {estimate.images_per_s:,.0f} images/s" in rates([estimate], machine)
    line = forecast([estimate], machine, is_known=True)
    assert rates([estimate], machine) in line and "\n" not in line
    assert f"{estimate.memory_gib:.2f} GiB a rank in stage reduced" in line
    flops = 3 * estimate.flops.forward / 1e9
    assert f"GFLOP a sample: reduced {flops:.3g}" in line
    assert "images/s" not in forecast([estimate], machine, is_known=False)


def test_a_shortfall_names_the_option_to_change():
    words = ["--config", DEMO, "--engine.checkpoint_image", "true"]
    micro = [*words, "--stages.reduced.micro_batch_samples", "16"]
    recipe, estimate, _ = planned(micro, "--gpus", "1", "--gpu", "h100")

    def warned(
        recipe=recipe, estimate=estimate, share=1.0, wait_share=0.1, memory=0.0, is_cpu=False
    ) -> dict[str, str]:
        return shortfalls(
            recipe,
            estimate,
            images_per_s=None if share is None else share * estimate.images_per_s,
            wait_share=wait_share,
            memory_gib=memory,
            is_cpu=is_cpu,
        )

    assert warned() == warned(share=0.71) == warned(share=None, wait_share=0.2) == {}
    slow = warned(share=0.6)
    assert set(slow) == {"images/s"} and "60%" in slow["images/s"]
    assert "stages.reduced.micro_batch_samples (now 16;" in slow["images/s"]
    whole, all_at_once, _ = planned(words, "--gpus", "1", "--gpu", "h100")
    assert "engine.checkpoint_image" in warned(whole, all_at_once, share=0.6)["images/s"]
    plain, one, _ = planned(["--config", DEMO], "--gpus", "1", "--gpu", "h100")
    assert "engine.compile to true" in warned(plain, one, share=0.6)["images/s"]
    waiting = warned(share=0.6, wait_share=0.3)
    assert set(waiting) == {"data wait"} and "data.loader.workers (now" in waiting["data wait"]
    own = estimate.memory_gib - estimate.memory.fixed["context"] / 2**30
    assert warned(memory=1.09 * own) == {} and warned(memory=None) == {}
    assert own < 0.5 and warned(memory=1.2 * own) == {}, "a little too much of next to nothing"
    large = warned(memory=own + 0.6)
    assert set(large) == {"memory"} and "stages.reduced.micro_batch_samples" in large["memory"]
    assert warned(memory=1.4 * estimate.memory_gib, is_cpu=True) == {}
    assert "memory" in warned(memory=1.6 * estimate.memory_gib, is_cpu=True)


def test_devices_are_known_by_their_names():
    assert hardware_of_device("NVIDIA A100-SXM4-80GB") == "a100-80g"
    assert hardware_of_device("NVIDIA A100-PCIE-40GB") == "a100-40g"
    assert hardware_of_device("NVIDIA H100 80GB HBM3") == "h100"
    assert hardware_of_device("some other") is None
    assert HARDWARE["h100"].peak_tflops == 989.4
