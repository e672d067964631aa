"""Memory and communication of the plan, against DeepSpeed's estimate, by hand and as measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vocabularies import of_size

from pretrain.models.build import build_model
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.plan.__main__ import PLAN
from pretrain.plan.communication import seconds, step_bytes
from pretrain.plan.estimate import stage_estimate
from pretrain.plan.hardware import Links
from pretrain.plan.memory import (
    Memory,
    ZeroLayout,
    packed_bytes,
    sample_bytes,
    states,
    tower_activations,
)
from pretrain.plan.words import read
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import plan_stages
from pretrain.tokens.options import TokenOptions

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "pretrain/recipes/demo.yaml")


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


def test_an_average_of_the_weights_is_four_bytes_a_parameter_over_the_ranks():
    common = dict(parameters=800, moments=6400, ranks=8, weight_bytes=2)
    for offload in (False, True):
        layout = ZeroLayout(stage=2, offload_optimizer=offload)
        (without, host), (parts, its_host) = (
            states(layout, **common, averages=averages) for averages in (False, True)
        )
        added = sum(parts.values()) - sum(without.values())
        assert (added, its_host - host) == ((0, 400) if offload else (400, 0))


def test_the_largest_micro_batch_divides_the_local_batch_and_fits():
    memory = Memory(fixed={"weights": 10}, per_sample=3, host=0)
    assert memory.largest_micro(10 + 3 * 31, 96) == 24
    assert memory.largest_micro(12, 96) is None


def test_a_locked_tower_has_no_gradient_no_state_and_no_activations():
    common = dict(parameters=800, ranks=8, weight_bytes=2)
    parts, host = states(ZeroLayout(stage=2), moments=8 * 300, locked=500, **common)
    assert (parts["weights"], host) == (2 * 800, 4 * 500)
    assert parts["gradients"] == (2 + 4) * 38 and parts["optimizer"] == 4 * 38 + 300
    sent = dict(parameters=100, weight_bytes=2, gradient_bytes=2, embed_dim=4, agreed=3)
    sent |= dict(global_batch=16)
    sent |= dict(ranks=4, locked=40)
    assert step_bytes(ZeroLayout(stage=1), passes=1, **sent)["gradients reduced"] == 2 * 120 * 0.75
    assert step_bytes(ZeroLayout(stage=1), passes=1, **sent)["weights gathered"] == 120 * 0.75
    gathered = step_bytes(ZeroLayout(stage=3), passes=1, **sent)["weights gathered"]
    assert gathered == (2 * 120 + 80) * 0.75


def test_towers_keep_what_the_plan_counts_for_the_backward_pass():
    kept, text_tokens, px = 16, 8, 64
    options = ModelOptions(
        embed_dim=32,
        image=ImageTowerOptions(width=64, depth=3, heads=2, patch_px=8),
        text=TextTowerOptions(width=96, depth=3, heads=2),
    )
    tokens = TokenOptions(image_px=px, text_tokens=text_tokens)
    model = build_model(options, tokens=tokens, vocabulary=of_size(300), device=torch.device("cpu"))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept_bytes(samples):
        alive = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                alive[storage.data_ptr()] = storage
            return tensor

        index = torch.arange(0, 4 * kept, 4).expand(samples, -1)
        ids = torch.full((samples, text_tokens), 5)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = model(torch.zeros(samples, 3, px, px), ids, index)
        del graph
        return sum(storage.nbytes() for storage in alive.values())

    common = dict(weight_bytes=4, explicit_attention=True)
    lengths = dict(kept=kept, text_tokens=text_tokens, recompute_image=None, recompute_text=None)
    seq_len = options.image.seq_len(kept)
    passing = tower_activations(options.image, seq_len=seq_len, **common).passing
    planned = sample_bytes(options, **lengths, **common) - passing
    four, eight = kept_bytes(4), kept_bytes(8)
    sample = (eight - four) / 4
    assert planned == pytest.approx(sample, rel=0.005), (planned, sample)
    once, packed = four - 4 * sample, packed_bytes(options.text, weight_bytes=4, recompute=None)
    assert packed == pytest.approx(once, rel=0.02), (packed, once)
    # Two of three blocks are recomputed: one at a time beside the third.
    assert packed_bytes(options.text, weight_bytes=4, recompute=2) == packed * 2 / 3


def test_communication_by_hand():
    common = dict(parameters=100, weight_bytes=2, gradient_bytes=2, embed_dim=4, agreed=3)
    common |= dict(global_batch=16, ranks=4)
    sent = {z: step_bytes(ZeroLayout(stage=z), passes=2, **common) for z in (1, 2, 3)}
    assert sent[1]["texts' features gathered"] == 16 * 4 * 4 * 3 / 4
    assert sent[1]["texts' sums agreed"] == 2 * 16 * 3 * 4 * 3 / 4
    assert [sent[z]["gradients reduced"] for z in (1, 2, 3)] == [300, 600, 300]
    assert [sent[z]["weights gathered"] for z in (1, 2, 3)] == [150, 150, 900]
    links = Links(gpu_gb_per_s=100, node_gb_per_s=10)
    assert seconds({"x": 10**10}, links, nodes=1) == pytest.approx(0.1 / 0.8)
    assert seconds({"x": 10**10}, links, nodes=2) == pytest.approx(1.0 / 0.8)
    alone = step_bytes(ZeroLayout(stage=3), passes=1, **{**common, "ranks": 1})
    assert set(alone.values()) == {0}


@pytest.mark.soak
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
    options, _ = read(PLAN, ["--gpus", "1", "--gpu", "cpu"])
    estimate = stage_estimate(recipe, stage, options.machine(), vocab_size=49408)
    predicted = estimate.memory.total(estimate.micro)
    assert predicted == pytest.approx(measured, rel=0.1), (predicted, measured)
