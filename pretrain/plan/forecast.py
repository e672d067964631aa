"""The plan in a line, as training says it at its start, and where reality falls short of it."""

import torch

from pretrain.plan.estimate import StageEstimate, say_hours
from pretrain.plan.hardware import GIB, HARDWARE, Links, Machine, hardware_of_device
from pretrain.recipe.recipe import Recipe

# What is tolerated before a warning. On a CPU the memory forecast was 10 to 26 % low where it was
# measured (docs/plan.md); on a GPU it never was.
_SLOWER, _WAITING = 0.3, 0.2
_MORE_MEMORY = {True: 1.5, False: 1.1}  # by whether it is a CPU
_LITTLE_GIB = 0.5  # a difference that nobody runs short by
_NODE_GB_PER_S = 50.0


def machine_of(device: torch.device, *, ranks: int, nodes: int) -> tuple[Machine, bool]:
    """(the machine that such a device stands in, whether its speed is known)."""
    name = "cpu" if device.type == "cpu" else None
    if device.type == "cuda":
        name = hardware_of_device(torch.cuda.get_device_name(device))
    is_known = name not in (None, "cpu")
    # One that is not listed holds what a listed GPU does; its speed is not spoken of.
    hardware = HARDWARE[name or "h100"]
    links = Links(gpu_gb_per_s=hardware.link_gb_per_s, node_gb_per_s=_NODE_GB_PER_S)
    machine = Machine(
        name=name or str(device.type),
        hardware=hardware,
        ranks=ranks,
        nodes=nodes,
        hfu=hardware.hfu,
        links=links,
    )
    return machine, is_known


def rates(estimates: list[StageEstimate], machine: Machine) -> str:
    """How fast, at what share of the peak, and how long."""
    fast = ", ".join(f"{e.name} {e.images_per_s:,.0f} images/s" for e in estimates)
    time = say_hours(sum(e.hours for e in estimates))
    return f"{fast}, {time} at {machine.hfu:.0%} of the peak of {machine.ranks} x {machine.name}"


def forecast(estimates: list[StageEstimate], machine: Machine, *, is_known: bool) -> str:
    """The plan in a line: the memory of the largest stage by part, FLOPs, and time where the
    machine's speed is known."""
    largest = max(estimates, key=lambda e: e.memory_gib)
    parts = {**largest.memory.fixed, "activations": largest.micro * largest.memory.per_sample}
    told = sorted(parts.items(), key=lambda part: -part[1])
    memory = ", ".join(f"{name} {size / GIB:.2f}" for name, size in told if size >= 0.005 * GIB)
    flops = ", ".join(f"{e.name} {_giga(e.executed_flops)}" for e in estimates)
    line = (
        f"plan: {largest.memory_gib:.2f} GiB a rank in stage {largest.name} ({memory}); "
        f"GFLOP a sample: {flops}"
    )
    return f"{line}; {rates(estimates, machine)}" if is_known else line


def shortfalls(
    recipe: Recipe,
    estimate: StageEstimate,
    *,
    images_per_s: float | None,
    wait_share: float,
    memory_gib: float | None,
    is_cpu: bool,
) -> dict[str, str]:
    """Warnings by what they are about, each with the option to change.

    images_per_s: measured, where the plan knows the machine's speed; memory_gib: of the rank that
    has most, without the device's own context.
    """
    found, name = {}, f"stages.{estimate.name}"
    if wait_share > _WAITING:
        workers = recipe.data.loader.workers
        found["data wait"] = (
            f"{name}: {wait_share:.0%} of the time is spent waiting for data: raise "
            f"data.loader.workers (now {'automatic' if workers is None else workers} a rank)"
        )
    elif images_per_s is not None and images_per_s < (1 - _SLOWER) * estimate.images_per_s:
        share = images_per_s / estimate.images_per_s
        found["images/s"] = (
            f"{name}: {images_per_s:,.0f} images/s, {share:.0%} of the plan's "
            f"{estimate.images_per_s:,.0f}, and it is not the data: {_faster(recipe, estimate)}"
        )
    expected = estimate.memory_gib
    if not is_cpu:
        expected -= estimate.memory.fixed["context"] / GIB
    if memory_gib is not None and memory_gib > max(
        _MORE_MEMORY[is_cpu] * expected, expected + _LITTLE_GIB
    ):
        found["memory"] = (
            f"{name}: {memory_gib:.2f} GiB in use on the rank that has most, {expected:.2f} "
            f"planned: if it runs short, lower {name}.micro_batch_samples (now {estimate.micro})"
        )
    return found


def _faster(recipe: Recipe, estimate: StageEstimate) -> str:
    """The first option that makes a step faster and is not taken yet."""
    engine, most = recipe.engine, estimate.largest_micro[estimate.zero_stage]
    if estimate.micro < estimate.local and most is not None and most > estimate.micro:
        return (
            f"raise stages.{estimate.name}.micro_batch_samples (now {estimate.micro}; {most} fits)"
        )
    for tower in ("image", "text"):
        if getattr(engine, f"checkpoint_{tower}") and most == estimate.local:
            return f"set engine.checkpoint_{tower} to false if memory allows"
    if not engine.compile:
        return "set engine.compile to true"
    return "look at a trace (log.profile_steps)"


def _giga(flops: float) -> str:
    giga = flops / 1e9
    return f"{giga:,.0f}" if giga >= 100 else f"{giga:.3g}"
