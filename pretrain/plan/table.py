"""The plan as text: one column a stage, then what all stages take together, then a verdict."""

from pretrain.plan.budget import Candidate, Head
from pretrain.plan.estimate import USABLE, StageEstimate, disk_bytes, say_hours
from pretrain.plan.forecast import rates
from pretrain.plan.hardware import GIB, Machine

Rows = list[tuple[str, list[str]]]


def plan_table(
    estimates: list[StageEstimate],
    machine: Machine,
    *,
    price_per_hour: float | None,
    dataset_samples: int | None,
    head: Head,
) -> str:
    """The whole plan of a recipe. dataset_samples: as given; else the head's count for the disk."""
    rows: Rows = [("", [e.name for e in estimates])]
    rows += _work(estimates) + _memory(estimates) + _time(estimates)
    if machine.ranks > 1:
        rows += _communication(estimates)
    lines = [_line(label, cells) for label, cells in rows]
    totals = _totals(estimates, machine, price_per_hour, dataset_samples, head)
    lines += ["", *(f"{label:<30}{value}" for label, value in totals), ""]
    return "\n".join([*lines, verdict(estimates, machine)])


def verdict(estimates: list[StageEstimate], machine: Machine) -> str:
    """One line: whether it fits, how long it takes, what to change."""
    for e in estimates:
        usable = machine.hardware.memory_gib * USABLE
        if e.memory_gib <= usable:
            continue
        largest = e.largest_micro[e.zero_stage]
        other = next((z for z, micro in e.largest_micro.items() if micro is not None), None)
        if largest is not None:
            remedy = f"set stages.{e.name}.micro_batch_samples to {largest}"
        elif other is not None:
            remedy = f"choose an engine.ds_config of ZeRO {other}"
        else:
            remedy = "more GPUs, or an engine.ds_config that offloads"
        return (
            f"verdict: does not fit: stage {e.name} needs {e.memory_gib:.1f} GiB of "
            f"{usable:.1f} ({USABLE:.0%} of {machine.hardware.memory_gib:g} count as usable); "
            f"{remedy}"
        )
    cores = max(e.loader_cores for e in estimates)
    return f"verdict: fits; {rates(estimates, machine)}; loaders need {cores} cores"


def budget_table(found: list[Candidate], machine: Machine, hours: float, budget: str) -> str:
    """Recipes that fit a budget, then those that do not. open_clip: whether it opens the export."""
    fitting = [c for c in found if c.hours is not None and c.hours <= hours]
    rest = [c for c in found if c not in fitting]
    lines = [
        f"{'':<26}{'time':>12}{'disk':>10}  {'open_clip':<9}  published",
        f"within {budget} on {machine.ranks} x {machine.name}:",
    ]
    lines += [_candidate(c) for c in fitting] or ["  no recipe"]
    lines += ["not within it:", *(_candidate(c) for c in rest)] if rest else []
    if fitting and fitting[0].head.accuracy is not None:
        best = f"{fitting[0].name} ({fitting[0].head}), {say_hours(fitting[0].hours or 0)}"
        return "\n".join([*lines, "", f"verdict: {best}"])
    return "\n".join([*lines, "", "verdict: no recipe with a published accuracy fits"])


def _candidate(c: Candidate) -> str:
    time = "-" if c.hours is None else say_hours(c.hours)
    disk = "-" if c.disk_bytes is None else f"{_number(c.disk_bytes / 1e12)} TB"
    opens = "yes" if c.opens_in_open_clip else "no"
    remark = f" ({c.remark})" if c.remark else ""
    return f"  {c.name:<24}{time:>12}{disk:>10}  {opens:<9}  {c.head}{remark}"


def _work(estimates: list[StageEstimate]) -> Rows:
    def each(text: str) -> list[str]:
        return [text.format(e=e) for e in estimates]

    return [
        ("parameters, image + text", [_parameters(e) for e in estimates]),
        ("image tokens kept/full + CLS", each("{e.kept_tokens}/{e.full_tokens} + {e.cls_tokens}")),
        ("text tokens", each("{e.text_tokens}")),
        ("samples", each("{e.samples:,}")),
        ("GFLOP a sample, forward", [_number(e.flops.forward / 1e9) for e in estimates]),
        ("  training, 3 forwards", [_number(3 * e.flops.forward / 1e9) for e in estimates]),
        ("  executed", [_number(e.executed_flops / 1e9) for e in estimates]),
    ]


def _memory(estimates: list[StageEstimate]) -> Rows:
    rows: Rows = [("GiB a rank, " + estimates[0].precision, ["" for _ in estimates])]
    for part in dict.fromkeys(part for e in estimates for part in e.memory.fixed):
        cells = [_number(e.memory.fixed.get(part, 0) / GIB) for e in estimates]
        rows.append((f"  {part}", cells))
    activations = [e.micro * e.memory.per_sample / GIB for e in estimates]
    rows.append(("  activations", [_number(value) for value in activations]))
    rows.append(("    MiB a sample", [_number(e.memory.per_sample / 2**20) for e in estimates]))
    rows.append(("  sum", [_number(e.memory_gib) for e in estimates]))
    if any(e.memory.host for e in estimates):
        rows.append(
            ("GiB in host memory a rank", [_number(e.memory.host / GIB) for e in estimates])
        )
    rows.append(
        ("micro batch of a rank's batch", [f"{e.micro:,} of {e.local:,}" for e in estimates])
    )
    for zero in (1, 2, 3):
        largest = [e.largest_micro[zero] for e in estimates]
        cells = ["none" if micro is None else f"{micro:,}" for micro in largest]
        rows.append((f"  largest that fits, ZeRO {zero}", cells))
    return rows


def _time(estimates: list[StageEstimate]) -> Rows:
    return [
        ("images/s", [f"{e.images_per_s:,.0f}" for e in estimates]),
        ("time", [say_hours(e.hours) for e in estimates]),
        ("loader cores", [f"{e.loader_cores:,}" for e in estimates]),
    ]


def _communication(estimates: list[StageEstimate]) -> Rows:
    rows: Rows = [("GB sent a rank and step", ["" for _ in estimates])]
    for name in estimates[0].sent:
        rows.append((f"  {name}", [_number(e.sent[name] / 1e9) for e in estimates]))
    rows.append(("  share of the step", [f"{e.sent_s / e.step_s:.1%}" for e in estimates]))
    return rows


def _totals(
    estimates: list[StageEstimate],
    machine: Machine,
    price_per_hour: float | None,
    dataset_samples: int | None,
    head: Head,
) -> list[tuple[str, str]]:
    hours = sum(e.hours for e in estimates)
    used = machine.ranks * hours
    distinct = dataset_samples or head.samples or max(e.samples for e in estimates)
    what = "at most, every sample another picture"
    if dataset_samples or head.samples:
        what = "the dataset" if dataset_samples else f"{head.data}; --dataset_samples N for another"
    disk = disk_bytes(estimates, distinct)
    tiers = ", ".join(f"tier {tier} {_number(size / 1e12)} TB" for tier, size in disk.items())
    cost = "give --price_per_gpu_hour"
    if price_per_hour is not None:
        cost = f"USD {used * price_per_hour:,.0f} at {price_per_hour:g} a GPU-hour"
    return [
        ("time", f"{say_hours(hours)}, {used:,.1f} GPU-hours"),
        ("cost", cost),
        ("disk", f"{tiers} ({what}: {distinct:,})"),
        ("published", str(head)),
    ]


def _parameters(e: StageEstimate) -> str:
    image, text = (e.parameters[tower] / 1e6 for tower in ("image", "text"))
    return f"{image:.1f} + {text:.1f} M"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _line(label: str, cells: list[str]) -> str:
    return f"{label:<34}" + "".join(f"{cell:>18}" for cell in cells)
