"""C, D, E, G and H: steps of whole towers, measure by measure; open_clip's; a profile."""

import functools
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_probe.plan import Plan
from benchmarks.gpu_probe.rows import Row, Rows
from benchmarks.towers import RATE, Shape, batch_of, build_engine, seconds, training_flops
from benchmarks.train_step import open_clips
from pretrain.base.distributed import Runtime
from pretrain.engine import engine as engine_module
from pretrain.engine.compiled import forget_compiled
from pretrain.engine.engine import Engine
from pretrain.engine.options import EngineOptions
from pretrain.models import attention as attention_module
from pretrain.plan.hardware import HARDWARE, hardware_of_device

# In the order in which they are added. What training always does has no option: it is taken out
# here. The patch embedding as a product cannot be: its convolution is gone.
TIMERS, TRIMMED, TF32 = "timers off", "DeepSpeed trimmed", "loss in TF32"
KERNEL, COMPILED = "short kernel", "compiled"
MEASURES = (TIMERS, TRIMMED, TF32, KERNEL, COMPILED)
EAGER = MEASURES[:-1]
PROFILED_STEPS = 3
_OPTIONS = EngineOptions()
_CUDA, _CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def title(measures: tuple[str, ...]) -> str:
    """Of a variant: the last measure it has, of those in order."""
    return f"+ {measures[-1]}" if measures else "none"


@contextmanager
def built(
    shape: Shape, runtime: Runtime, measures: tuple[str, ...], options: EngineOptions = _OPTIONS
) -> Iterator[Engine]:
    """An engine with these measures alone, as long as the body runs."""
    makes = Engine._config

    def config(self: Engine, *options: Any) -> dict[str, Any]:
        made = makes(self, *options)
        if TIMERS not in measures:
            del made["timers"]
        if TRIMMED not in measures:
            del made["bf16"]["immediate_grad_update"]
        return made

    with ExitStack() as changes:
        changes.enter_context(mock.patch.object(Engine, "_config", config))
        if TRIMMED not in measures:
            untrimmed = mock.patch.object(engine_module, "trim", lambda *_, **__: None)
            changes.enter_context(untrimmed)
        if KERNEL not in measures:
            torchs = mock.patch.object(attention_module, "_is_covered", lambda *_: False)
            changes.enter_context(torchs)
        chosen = replace(options, compile=COMPILED in measures)
        engine = build_engine(shape, runtime, "bf16", chosen)
        engine.objective.tf32 = TF32 in measures
        try:
            yield engine
        finally:
            engine.close()
            engine.__dict__.clear()
            forget()


def forget() -> None:
    """Give the device's memory back: DeepSpeed's hooks make circles of references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Trained:
    """Steps of one engine on one batch, and their losses."""

    def __init__(self, engine: Engine, shape: Shape) -> None:
        self.engine, self.shape = engine, shape
        images, self.texts = batch_of(shape, engine.runtime.device)
        self.images = images.to(engine.dtype)
        self.losses: list[float] = []

    def step(self) -> None:
        found = self.engine.step(
            self.images, self.texts, None, learning_rate=RATE, objective_learning_rate=RATE
        )
        self.losses.append(found.loss)

    def timed(self, steps: int, warm: int) -> Row:
        """Milliseconds a step after `warm` of them, images/s, share of the peak, memory, losses."""
        device = self.engine.runtime.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        seconds(self.step, 1, device)
        first_s = time.perf_counter() - begin
        seconds(self.step, warm, device)
        spent = seconds(self.step, steps - warm, device)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        return {
            **rates(self.shape, spent, device),
            "first_step_s": first_s,
            "peak_gib": peak,
            "losses": self.losses,
        }


def rates(shape: Shape, spent_s: float, device: torch.device) -> Row:
    per_s = shape.batch / spent_s
    found = {"batch": shape.batch, "step_ms": 1e3 * spent_s, "images_per_s": per_s}
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    hardware = hardware_of_device(named)
    if hardware is None:
        return found
    peak = 1e12 * HARDWARE[hardware].peak_tflops
    return {**found, "share_of_peak": per_s * training_flops(shape) / peak}


def fitted(shape: Shape, find: Callable[[Shape], Row]) -> Row:
    """A row of the largest batch that fits, halved from the shape's."""
    while True:
        try:
            return find(shape)
        except torch.OutOfMemoryError:
            shape = replace(shape, batch=shape.batch // 2)
        forget()


def variant(
    shape: Shape,
    runtime: Runtime,
    measures: tuple[str, ...],
    *,
    steps: int,
    warm: int,
    options: EngineOptions = _OPTIONS,
) -> Row:
    """One engine's row."""

    def find(shape: Shape) -> Row:
        with built(shape, runtime, measures, options) as engine:
            return {"measures": measures, **Trained(engine, shape).timed(steps, warm)}

    return fitted(shape, find)


def apart(losses: list[float], others: list[float] | None) -> float | None:
    """Their largest difference; None without the others."""
    return max(abs(a - b) for a, b in zip(losses, others, strict=True)) if others else None


def measures_added(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """C: one measure after the other; the losses' largest difference from the first variant's."""
    shape = plan.shapes[plan.first]
    first: list[float] = []
    for count in range(len(MEASURES) + 1):
        measures = MEASURES[:count]

        def find(measures: tuple[str, ...] = measures) -> Row:
            row = variant(shape, runtime, measures, steps=plan.steps, warm=plan.warm)
            first[:] = first or row["losses"]
            return {**row, "losses_apart": apart(row["losses"], first)}

        rows.measure(f"{plan.first} {title(measures)}", find)


def other_shapes(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """D: without and with all measures; then once with half of the activations kept."""
    others = {name: shape for name, shape in plan.shapes.items() if name != plan.first}
    few: dict[str, Any] = {"steps": max(3, plan.steps // 2), "warm": max(1, plan.warm // 2)}
    for name, shape in others.items():
        for measures in ((), MEASURES):
            rows.measure(
                f"{name} {title(measures)}", partial(variant, shape, runtime, measures, **few)
            )
    name, shape = next(iter(others.items()))
    half = EngineOptions(compile=True, activation_memory_budget=0.5)
    rows.measure(
        f"{name} {title(MEASURES)}, activation_memory_budget 0.5",
        partial(variant, shape, runtime, MEASURES, **few, options=half),
    )


def small_batches(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """E: batches at which the host's work shows, eager and compiled."""
    for measures in (EAGER, MEASURES):
        for batch in plan.small_batches:
            shape = replace(plan.shapes[plan.first], batch=batch)
            name = f"{plan.first} at {batch}, {title(measures)}"
            rows.measure(name, partial(host_row, shape, runtime, measures, plan))


def host_row(
    shape: Shape,
    runtime: Runtime,
    measures: tuple[str, ...],
    plan: Plan,
    kind: type[Trained] = Trained,
) -> Row:
    """Beside the step's time the share in which the device has nothing to do, and launches."""
    with built(shape, runtime, measures) as engine:
        trained = kind(engine, shape)
        row = trained.timed(plan.steps, plan.warm)
        profile = profiled(trained)
    launches = sum(e.count for e in profile.key_averages() if "LaunchKernel" in e.key)
    busy_ms = sum(ms for ms, _, _ in kernels(profile, runtime.device))
    return {
        **row,
        "launches": launches / PROFILED_STEPS,
        "idle_share": max(0.0, 1 - busy_ms / row["step_ms"]),
    }


def profiled(trained: Trained) -> torch.profiler.profile:
    with torch.profiler.profile() as profile:
        seconds(trained.step, PROFILED_STEPS, trained.engine.runtime.device)
    return profile


def kernels(
    profile: torch.profiler.profile, device: torch.device
) -> list[tuple[float, float, str]]:
    """(milliseconds, calls, name) a step of what ran on the device, the longest first."""
    place = _CUDA if device.type == "cuda" else _CPU
    found = []
    for event in profile.key_averages():
        if event.device_type == place and not event.is_user_annotation:
            us = event.self_device_time_total or event.self_cpu_time_total
            found.append((1e-3 * us / PROFILED_STEPS, event.count / PROFILED_STEPS, event.key))
    return sorted(found, reverse=True)


def kernel_table(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """H: of a step of the last variant the 60 longest kernels, as text beside the rows."""
    path = rows.path.with_suffix(".kernels.txt")
    rows.measure("kernel table", partial(write_table, plan, runtime, path))


def write_table(plan: Plan, runtime: Runtime, path: Path) -> Row:
    shape = plan.shapes[plan.first]
    with built(shape, runtime, MEASURES) as engine:
        trained = Trained(engine, shape)
        seconds(trained.step, 3, runtime.device)
        found = kernels(profiled(trained), runtime.device)
    lines = [f"{ms:9.3f} ms {calls:7.1f} x {name[:150]}" for ms, calls, name in found[:60]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"file": path.name, "all_ms": sum(ms for ms, _, _ in found)}


def beside_open_clip(plan: Plan, rows: Rows, runtime: Runtime) -> None:
    """G: open_clip with its fastest settings."""
    for name in plan.against:
        shape = plan.shapes[name]
        find = partial(open_clip_row, device=runtime.device, plan=plan)
        rows.measure(f"{name} open_clip", partial(fitted, shape, find))


def open_clip_row(shape: Shape, device: torch.device, plan: Plan) -> Row:
    try:
        step = open_clips(shape, device, "bf16", best=True)
        seconds(step, plan.warm, device)
        return rates(shape, seconds(step, plan.steps - plan.warm, device), device)
    finally:
        forget_compiled()
        forget()


def compiler(plan: Plan) -> Any:
    """The plan's backend in place of torch.compile's default, as a context."""
    return mock.patch.object(
        torch, "compile", functools.partial(torch.compile, backend=plan.backend)
    )
