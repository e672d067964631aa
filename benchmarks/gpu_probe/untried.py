"""I: CUDA graphs, and DeepSpeed's reduction beside the backward pass: neither was ever tried."""

import functools
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from benchmarks.gpu_probe.plan import Plan
from benchmarks.gpu_probe.rows import Row, Rows
from benchmarks.gpu_probe.steps import EAGER, MEASURES, Trained, apart, host_row, variant
from benchmarks.towers import Shape
from pretrain.base.distributed import Runtime
from pretrain.engine.options import EngineOptions

ZERO_2 = Path(__file__).parents[2] / "ds_configs/zero2.json"


class Graphed(Trained):
    """Steps whose towers' outputs, in a CUDA graph's memory, the next step may overwrite."""

    def step(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        super().step()


def graphs(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """Where launching is most of a step: compiled towers without and with CUDA graphs, and the
    losses' largest difference between the two."""
    shape = replace(plan.shapes[plan.first], batch=max(plan.small_batches))
    name = f"{plan.first} at {shape.batch}"
    without = rows.measure(f"{name}, compiled", partial(host_row, shape, runtime, MEASURES, plan))

    def find() -> Row:
        if runtime.device.type != "cuda":
            return {"not_applicable": "CUDA graphs need a GPU"}
        graphed = functools.partial(torch.compile, mode="reduce-overhead")
        with mock.patch.object(torch, "compile", graphed):
            row = host_row(shape, runtime, MEASURES, plan, Graphed)
        return {**row, "losses_apart": apart(row["losses"], without.get("losses"))}

    rows.measure(f"{name}, CUDA graphs", find)


def overlap(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """ZeRO 2 without and with overlap_comm. One rank shows what the second stream costs; what it
    hides takes two."""
    shape, first = plan.shapes[plan.first], None
    for switch in (False, True):
        find = partial(overlap_row, shape, runtime, plan, switch=switch, first=first)
        name = f"{plan.first}, {runtime.world_size} ranks, ZeRO 2, overlap_comm {switch}"
        first = rows.measure(name, find).get("losses")
    if runtime.world_size == 1:
        rows.write(
            f"{plan.first}, between ranks",
            not_applicable="one rank: torchrun --nproc_per_node 2 -m benchmarks.gpu_probe "
            "--steps I on two GPUs",
        )


def overlap_row(
    shape: Shape, runtime: Runtime, plan: Plan, *, switch: bool, first: list[float] | None
) -> Row:
    config = json.loads(ZERO_2.read_text(encoding="utf-8"))
    config["zero_optimization"]["overlap_comm"] = switch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zero2.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        options = EngineOptions(ds_config=path)
        row = variant(shape, runtime, EAGER, steps=plan.steps, warm=plan.warm, options=options)
    return {**row, "losses_apart": apart(row["losses"], first)}
