"""The plan: FLOPs, parameters, memory and communication against figures that it did not make."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vocabularies import of_size

from pretrain.models.build import build_model
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.plan.__main__ import main
from pretrain.plan.budget import Candidate, candidates, published
from pretrain.plan.command import plan
from pretrain.plan.communication import seconds, step_bytes
from pretrain.plan.estimate import StageEstimate, stage_estimate
from pretrain.plan.flops import count_parameters, forward_flops, meta_model
from pretrain.plan.forecast import forecast, rates, shortfalls
from pretrain.plan.hardware import HARDWARE, Links, Machine, hardware_of_device
from pretrain.plan.memory import Memory, ZeroLayout, states
from pretrain.plan.table import budget_table
from pretrain.plan.words import parse_words
from pretrain.recipe.parsing import parse
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import plan_stages
from pretrain.tokens.options import TokenOptions

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "pretrain/recipes/demo.yaml")
TINY = str(ROOT / "pretrain/recipes/tiny.yaml")


def towers(image, text, patch_px, embed):
    """A CLIP of (width, depth, heads, MLP) towers."""
    shapes = [dict(width=w, depth=d, heads=h, mlp_ratio=m / w) for w, d, h, m in (image, text)]
    return ModelOptions(
        image=ImageTowerOptions(**shapes[0], patch_px=patch_px),
        text=TextTowerOptions(**shapes[1]),
        embed_dim=embed,
    )


B16 = towers((768, 12, 12, 3072), (512, 12, 8, 2048), 16, 512)
L16 = towers((1024, 24, 16, 4096), (768, 12, 12, 3072), 16, 768)
L14 = towers((1024, 24, 16, 4096), (768, 12, 12, 3072), 14, 768)
H14 = towers((1280, 32, 16, 5120), (1024, 24, 16, 4096), 14, 1024)
BIGG = towers((1664, 48, 16, 8192), (1280, 32, 20, 5120), 14, 1280)


# Forward GFLOP a sample, as published: open_clip's docs/model_profile.csv (224 px, 77 text tokens),
# and reckoned from CLIPA's recipes (arXiv 2305.07017, CLIPA-v2 arXiv 2306.15658).
@pytest.mark.parametrize(
    ("model", "kept", "full", "text_tokens", "gflop"),
    [
        (B16, 196, 196, 77, 41.09),
        (L14, 256, 256, 77, 175.33),
        (H14, 256, 256, 77, 381.68),
        (BIGG, 256, 256, 77, 1065.36),
        (B16, 49, 49, 16, 9.86),
        (B16, 196, 196, 16, 36.3),
        (L16, 16, 16, 16, 13.1),
        (L16, 196, 196, 32, 128.6),
        (L16, 36, 36, 8, 23.9),
        (L14, 36, 36, 8, 23.9),
        (L14, 179, 256, 32, 117.7),
        (H14, 25, 25, 8, 37.7),
        (H14, 36, 36, 8, 51.7),
        (H14, 179, 256, 32, 251.6),
        (BIGG, 36, 36, 8, 146.8),
        (BIGG, 153, 256, 32, 615),
    ],
)
def test_flops_agree_with_published_figures(model, kept, full, text_tokens, gflop):
    counted = forward_flops(model, kept=kept, full=full, text_tokens=text_tokens).forward
    assert counted / 1e9 == pytest.approx(gflop, rel=0.01)


def test_flops_of_a_tiny_model_by_hand():
    model = towers((8, 1, 2, 16), (4, 2, 2, 8), 2, 3)
    found = forward_flops(model, kept=2, full=4, text_tokens=5)
    # 3 tokens x (4 x 64 + 2 x 8 x 16 + 2 x 3 x 8) + 4 patches of 12 numbers x 8 + 8 x 3
    assert found.image == 2 * (3 * (256 + 256 + 48) + 4 * 12 * 8 + 8 * 3)
    assert found.text == 2 * (2 * 5 * (64 + 64 + 40) + 4 * 3)
    assert found.executed(two_passes=False) == 3 * (found.image + found.text)
    assert found.executed(recompute_image=True, two_passes=True) == (
        5 * found.image + 4 * found.text
    )


@pytest.mark.parametrize(
    ("image", "text", "space"),
    [
        ({}, {}, {}),
        ({}, {"causal": True, "pool": "eos", "specials": "bos_eos"}, {}),
        ({"cls_token": False}, {"padding_mask": True, "pool": "mean"}, {}),
        ({"pool": "attention", "cls_token": False}, {}, {"text_projection_bias": True}),
        ({"pool": "attention", "mlp_ratio": 2.5}, {"mlp_ratio": 3.3}, {}),
        ({"pool": "attention"}, {}, {"image_projection": False, "embed_dim": 64}),
        ({"pool": "gap_cls", "pre_norm": True, "positions": "learned"}, {"pool": "mean"}, {}),
        ({"pool": "cls", "positions": "learned", "cls_position": True}, {}, {}),
    ],
)
def test_flops_and_parameters_are_those_of_the_real_towers(image, text, space):
    model = ModelOptions(
        image=ImageTowerOptions(**{**dict(width=64, depth=3, heads=2, patch_px=8), **image}),
        text=TextTowerOptions(**{**dict(width=48, depth=2, heads=2), **text}),
        **{"embed_dim": 32, **space},
    )
    tokens = TokenOptions(image_px=64, text_tokens=12)
    real = build_model(model, tokens=tokens, vocabulary=of_size(100), device=torch.device("cpu"))
    real.requires_grad_(False)  # torch's counter does not take a learned query otherwise
    kept = torch.arange(20)[None].expand(2, -1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        real(torch.zeros(2, 3, 64, 64), torch.ones(2, 12, dtype=torch.int64), kept)
    counted = forward_flops(model, kept=20, full=64, text_tokens=12).forward
    assert counted == counter.get_total_flops() / 2
    by_tower = count_parameters(meta_model(model, tokens, 100))
    assert sum(by_tower.values()) == sum(p.numel() for p in real.parameters())
    assert by_tower["text"] == sum(
        p.numel() for name, p in real.named_parameters() if name.startswith("text")
    )


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_zero_states_are_those_of_deepspeeds_own_estimate(ranks):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    parameters = 64 * 10**6
    held = ("weights", "gradients", "optimizer")

    def ours(stage):
        parts, host = states(
            ZeroLayout(stage=stage),
            parameters=parameters,
            moments=8 * parameters,
            ranks=ranks,
            weight_bytes=2,
        )
        assert host == 0
        return sum(parts[name] for name in held)

    _, two = estimate_zero2_model_states_mem_needs(parameters, ranks, cpu_offload=False)
    _, three, _ = estimate_zero3_model_states_mem_needs(
        parameters, 0, ranks, cpu_offload=False, cpu_offload_params=False
    )
    assert ours(2) == two
    assert ours(3) == three
    # A bf16 weight, a bf16 and an fp32 gradient; master and two moments divided.
    assert ours(1) == 8 * parameters + 12 * parameters // ranks


def test_offload_moves_the_states_to_the_host():
    layout = ZeroLayout(stage=3, offload_optimizer=True, offload_weights=True)
    parts, host = states(layout, parameters=800, moments=6400, ranks=8, weight_bytes=2)
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (0, 0, 0)
    assert host == 100 * (2 + 4 + 4 + 8)


def test_the_largest_micro_batch_divides_the_local_batch_and_fits():
    memory = Memory(fixed={"weights": 10}, per_sample=3, host=0)
    assert memory.largest_micro(10 + 3 * 31, 96) == 24
    assert memory.largest_micro(12, 96) is None


def test_a_locked_tower_has_no_gradient_no_state_and_no_activations():
    common = dict(parameters=800, ranks=8, weight_bytes=2)
    parts, host = states(ZeroLayout(stage=2), moments=8 * 300, locked=500, **common)
    assert (parts["weights"], host) == (2 * 800, 4 * 500)
    assert parts["gradients"] == (2 + 4) * 38 and parts["optimizer"] == 4 * 38 + 300
    sent = dict(parameters=100, weight_bytes=2, embed_dim=4, global_batch=16, ranks=4, locked=40)
    assert step_bytes(ZeroLayout(stage=1), passes=1, **sent)["gradients reduced"] == 2 * 120 * 0.75
    assert step_bytes(ZeroLayout(stage=1), passes=1, **sent)["weights gathered"] == 120 * 0.75
    gathered = step_bytes(ZeroLayout(stage=3), passes=1, **sent)["weights gathered"]
    assert gathered == (2 * 120 + 80) * 0.75


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
    assert plan(*parse_words([*words, "--stages.full.layer_decay", "0.7"])) == plan(
        *parse_words(words)
    )


def test_communication_by_hand():
    common = dict(parameters=100, weight_bytes=2, embed_dim=4, global_batch=16, ranks=4)
    sent = {z: step_bytes(ZeroLayout(stage=z), passes=2, **common) for z in (1, 2, 3)}
    assert sent[1]["features gathered"] == 16 * 2 * 4 * 4 * 3 / 4
    assert [sent[z]["gradients reduced"] for z in (1, 2, 3)] == [300, 300, 300]
    assert [sent[z]["weights gathered"] for z in (1, 2, 3)] == [150, 150, 900]
    links = Links(gpu_gb_per_s=100, node_gb_per_s=10)
    assert seconds({"x": 10**10}, links, nodes=1) == pytest.approx(0.1)
    assert seconds({"x": 10**10}, links, nodes=2) == pytest.approx(1.0)
    alone = step_bytes(ZeroLayout(stage=3), passes=1, **{**common, "ranks": 1})
    assert set(alone.values()) == {0}


def test_published_figures_are_read_from_the_head_alone():
    line = "# published: 67.8 % ImageNet-1k zero-shot, 628 A100-hours\n"
    assert published("# L/16\n" + line + "seed: 0\n") == (
        "67.8 % ImageNet-1k zero-shot, 628 A100-hours",
        67.8,
    )
    assert published("seed: 0\n" + line) == (None, None)
    assert published("# published: not published\n") == ("not published", None)


def test_recipes_within_a_budget_are_ranked_by_accuracy(tmp_path):
    demo = Path(DEMO).read_text()
    for name, line in (
        ("plain", ""),
        ("good", "# published: 70 % x\n"),
        ("best", "# published: 71 % x\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(line + demo)
    (tmp_path / "own.yaml").write_text((ROOT / "pretrain/recipes/own.yaml").read_text())
    options, _ = parse_words(["--gpu", "a100-80g", "--days", "3"])
    found = candidates(
        sorted(tmp_path.glob("*.yaml")), options.machine(), dataset_samples=None, vocab_size=100
    )
    assert [c.name for c in found] == ["best", "good", "plain", "own"]
    assert "dataset_samples" in found[-1].remark
    shown = budget_table(found, options.machine(), 72, "3 days")
    assert shown.splitlines()[-1].startswith("verdict: best (71 % x)")
    assert "not published" in shown
    slow = Candidate(name="slow", published="80 %", accuracy=80.0, hours=73, remark=None)
    late = budget_table([slow], options.machine(), 72, "3 days")
    assert "no recipe" in late.splitlines()[1] and "slow" in late.split("not within it:")[1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--gpuz", "3"], "did you mean 'gpu'"),
        (["--gpus", "x", "--days", "1"], "whole number"),
        (["--gpu", "tpu", "--days", "1"], "rtx4090"),
        (["--gpus", "0", "--days", "1"], "--gpus=0"),
        (["--mfu", "2", "--days", "1"], "--mfu 2"),
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
    shown = plan(*parse_words([*words, "--stages.full.steps", "9"]))
    assert "144" in shown and shown.splitlines()[-1].startswith("verdict: fits")
    small = plan(*parse_words([*words, "--gpu_memory_gib", "0.001"]))
    assert "does not fit" in small.splitlines()[-1]


def planned(
    words: list[str], *machine: str, stage: int = 0
) -> tuple[Recipe, StageEstimate, Machine]:
    options, _ = parse_words([*machine])
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


@pytest.mark.parametrize("place", [0, 1], ids=["reduced", "full"])
def test_memory_on_a_cpu_is_near_a_measured_step(place):
    recipe, _ = parse(["--config", DEMO])
    stage = plan_stages(recipe.stages, 10_000)[place]
    command = [sys.executable, str(ROOT / "tests/support/measured_memory.py"), DEMO, stage.name]
    done = subprocess.run(
        [*command, "49408", "3"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout.splitlines()[-1])["peak"]
    options, _ = parse_words(["--gpus", "1", "--gpu", "cpu"])
    estimate = stage_estimate(recipe, stage, options.machine(), vocab_size=49408)
    predicted = estimate.memory.total(estimate.micro)
    assert predicted == pytest.approx(measured, rel=0.15), (predicted, measured)
