"""What is logged of a step is what happened: by rank, in tokens, FLOPs and memory."""

import importlib.util
import json
import signal
import sqlite3
import time

import pytest
import torch
from engine_cases import GLOBAL_BATCH, Case, build_engine, one_step
from forked_runs import train, trained
from launched_runs import LONG, PLAIN_PYTHON, Run
from ranks import run_ranks
from tiny_runs import ROOT

from pretrain.plan.flops import forward_flops, loss_flops
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import plan_stages
from pretrain.run.meter import Meter, Workload, known_peak_tflops, workload

SLOW_S, BALLAST_GIB = 0.25, 0.25


def logged(run_dir) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


def test_a_run_logs_each_step_in_tokens_and_flops(tiny_run):
    recipe, _ = parse(["--config", str(ROOT / "pretrain/recipes/tiny.yaml")])
    # Of the resolved stages: 8 kept of 16 image tokens and 6 of text, then 36 and 12.
    tokens = {"reduced": (8, 6), "full": (36, 12)}
    steps = logged(tiny_run)
    assert len(steps) == 10
    for step in steps:
        assert step["grad_norm"] > 0
        kept, text = tokens[step["stage"]]
        assert step["tokens_per_s"] == pytest.approx(step["images_per_s"] * (kept + text))
        flops = 3 * forward_flops(recipe.model, kept=kept, text_tokens=text).forward
        flops += loss_flops(recipe.model.embed_dim, GLOBAL_BATCH)
        assert step["tflop_per_s"] == pytest.approx(step["images_per_s"] * flops / 1e12)
        for name in ("mfu", "hfu", "device_memory_peak_gib"):  # no GPU, no peak
            assert step[name] is None
        assert 0.1 < step["host_memory_gib"] < 8
        assert step["slowest_rank"] in (0, 1)
        assert step["median_rank_ready_s"] <= step["slowest_rank_ready_s"]


def test_mfu_of_a_given_peak_the_plan_at_the_start_and_a_trace(tiny_dataset, tmp_path):
    options = ["--log.peak_tflops", "0.5", "--log.every_steps", "3", "--log.profile_steps", "[2,7]"]
    said = trained(tmp_path / "run", tiny_dataset, *options, ranks=2)
    lines = [line for line in said.splitlines() if "plan: " in line]
    assert len(lines) == 1 and "GiB a rank in stage full" in lines[0], lines
    assert "images/s" not in lines[0]  # of this CPU no speed is known
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "steps_2-7.json"
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    # Both stages lie in it: six steps, each with one step of the optimizer and some collectives.
    assert sum(name.startswith("Optimizer.step#AdamW") for name in names) >= 6
    assert any("all_reduce" in name for name in names) and "aten::mm" in names
    steps = logged(tmp_path / "run")
    assert [step["step"] for step in steps] == [3, 6, 9, 10]
    for step in steps:
        assert step["hfu"] == pytest.approx(step["tflop_per_s"] / (2 * 0.5))
        assert 0.9 * step["hfu"] < step["mfu"] < step["hfu"]  # nothing is recomputed
    assert known_peak_tflops(torch.device("cpu"), "bf16") is None


def test_a_trace_of_no_steps_is_refused():
    tiny = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml")]
    for steps in ("[0,3]", "[4,3]"):
        with pytest.raises(ValueError, match=r"log\.profile_steps=\["):
            parse([*tiny, "--log.profile_steps", steps])


def read_on_a_rank(rank: int):
    """(readings of a slow rank 1, of a rank 1 whose data come late, of a large rank 1)"""
    from pretrain.base.distributed import all_ranks

    case = Case(zero="2")
    engine = build_engine(case)
    one_step(engine, case, 0)
    meter = Meter(Workload(batch_samples=GLOBAL_BATCH), torch.device("cpu"))

    def reading(wait_s: float = 0.0) -> dict:
        meter.restart()
        if rank == 1:
            time.sleep(wait_s)
            meter.waited(wait_s)
        result = one_step(engine, case, 1)
        meter.stepped({"replaced": {}, "replaced_first": {}, "replaced_in_a_row": 0})
        return meter.read(all_ranks(meter.of_this_rank(result.ready_s)))

    usual = reading()
    late = reading(SLOW_S)
    ballast = torch.ones(round(BALLAST_GIB * 2**28) * rank)
    large = reading()
    del ballast
    image = engine.engine.module.image
    hook = image.register_forward_pre_hook(lambda *_: time.sleep(SLOW_S * rank))
    slow = reading()
    hook.remove()
    engine.close()
    return usual, late, large, slow


def test_the_slowest_rank_is_named_and_the_largest_told():
    mine, others = run_ranks(read_on_a_rank, 2)
    for usual, late, large, slow in (mine, others):
        for one in (late, slow):
            assert one["slowest_rank"] == 1
            assert SLOW_S <= one["slowest_rank_ready_s"] <= one["step_s"] + 0.05
            assert one["median_rank_ready_s"] < one["slowest_rank_ready_s"] - SLOW_S / 4
        assert late["data_wait_s"] == SLOW_S and slow["data_wait_s"] == 0
        assert large["host_memory_gib"] - usual["host_memory_gib"] > 0.9 * BALLAST_GIB
    for a, b in zip(mine, others, strict=True):
        assert a["slowest_rank_ready_s"] == b["slowest_rank_ready_s"]


def test_a_workload_counts_what_a_step_executes():
    words = ["--stages.full.micro_batch_samples", "4", "--engine.checkpoint_image", "true"]
    recipe, _ = parse(["--config", str(ROOT / "pretrain/recipes/tiny.yaml"), *words])
    stage = plan_stages(recipe.stages, 1000)[1]
    work = workload(recipe, stage, 1000, precision="fp32", ranks=2, device=torch.device("cpu"))
    flops = forward_flops(recipe.model, kept=36, text_tokens=12)
    assert work.flops_per_sample == pytest.approx(3 * flops.forward)
    of_loss = loss_flops(recipe.model.embed_dim, stage.options.global_batch_samples)
    executed = 5 * flops.image + 4 * flops.text + of_loss
    assert work.executed_per_sample == pytest.approx(executed)
    assert (work.tokens_per_sample, work.peak_tflops) == (48, None)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_shows_what_the_log_holds_through_a_stop(
    name, tiny_dataset, tmp_path, monkeypatch
):
    """Without a service: wandb's offline files, trackio's own database."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; it is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run_dir = tmp_path / "run"
    options = ("--log.tracker", name, "--log.every_steps", "1")
    with Run(PLAIN_PYTHON, run_dir, tiny_dataset, *options, *LONG) as run:
        run.wait_for('"step": 3, ')
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75
    with Run(PLAIN_PYTHON, run_dir, tiny_dataset, *options, *LONG) as run:
        run.wait_for('"event": "step"', past=len((run_dir / "metrics.jsonl").read_text()))
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75
    losses = {step["samples_seen"]: step["loss"] for step in logged(run_dir)}
    assert len(losses) > 4
    if name == "trackio":
        (path,) = (tmp_path / "trackio").glob("*.db")
        rows = sqlite3.connect(path).execute("SELECT run_name, step, metrics FROM metrics")
        names, shown = set(), {}
        for run_name, step, metrics in rows:
            names.add(run_name)
            shown[step] = json.loads(metrics)["step/loss"]
        assert len(names) == 1 and shown == losses
    else:
        files = list((run_dir / "wandb").glob("*/*.wandb"))
        assert len({path.name for path in files}) == 1  # one id for both starts
        held = b"".join(path.read_bytes() for path in files)
        assert all(repr(loss).encode() in held for loss in losses.values())


def test_a_tracker_that_is_not_installed_is_named_before_the_first_step(tiny_dataset, tmp_path):
    for name in ("wandb", "trackio"):
        if importlib.util.find_spec(name) is None:
            ended = train(tmp_path / "run", tiny_dataset, "--log.tracker", name)
            assert ended.code == 2 and f"log.tracker={name} is not installed" in ended.output
            return
    pytest.skip("both trackers are installed")
