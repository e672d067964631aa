"""What a step costs beside its arithmetic: kernels, waits for the device, roundings, frames."""

import functools
import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from engine_cases import (
    STEPS,
    Case,
    build_engine,
    error_of_the_move,
    largest,
    one_step,
    train_in_float64,
    training,
)
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

CALM = {"learning_rate": 5e-5, "eps": 1e-2}
BF16 = Case(precision="bf16", **CALM)
# These make a tensor without a kernel.
_NO_KERNEL = {"view", "t", "transpose", "slice", "detach", "alias", "split", "unbind", "empty",
    "as_strided", "empty_like", "_local_scalar_dense", "split_with_sizes", "select",
    "expand", "unsqueeze", "squeeze", "_unsafe_view", "_reshape_alias"}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts kernels while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = function._schema.name.split("::")[-1]
        self.of[name] += name not in _NO_KERNEL
        return function(*args, **(kwargs or {}))


def launches_on_a_rank(rank: int) -> tuple[int, int, Counter[str]]:
    """Parameters, waits for the device in a step of four chunks, kernels after the backward."""
    from deepspeed.accelerator import get_accelerator

    case = Case(precision="bf16", chunks=4, gradient_clip=1e-3, **CALM)
    engine = build_engine(case)
    for batch in range(2):
        one_step(engine, case, batch)
    waits, launches = Counter(), Launches()
    accelerator, deepspeed = get_accelerator(), engine.engine
    accelerator.synchronize = lambda *_, **__: waits.update(["synchronize"])
    step, epilogue = deepspeed.step, deepspeed._backward_epilogue

    def counted(function: Any) -> Any:
        with launches:
            return function()

    deepspeed.step = functools.partial(counted, step)
    deepspeed._backward_epilogue = functools.partial(counted, epilogue)
    one_step(engine, case, 2)
    del accelerator.synchronize
    parameters = sum(1 for _ in deepspeed.module.parameters())
    engine.close()
    return parameters, waits["synchronize"], launches.of


def test_a_step_waits_for_nothing_and_its_kernels_do_not_grow_with_the_model():
    parameters, waits, launches = run_ranks(launches_on_a_rank, 1)[0]
    assert waits == 0, f"DeepSpeed waits for the device {waits} times"
    assert sum(launches.values()) < 40 < parameters, f"{parameters} parameters: {launches}"


def share_of_rounded_gradients(rank: int, cases: list[Case]) -> list[float]:
    """Of the summed fp32 gradients, the share that bf16 holds without loss, case by case."""
    found = []
    for case in cases:
        engine = build_engine(case)
        zero = engine.engine.optimizer

        def look(zero: Any = zero, update: Any = zero.step) -> None:
            summed = torch.cat(zero.fp32_groups_gradients_flat)
            summed = summed[summed != 0]
            found.append(float((summed.bfloat16().float() == summed).float().mean()))
            update()

        zero.step = look
        one_step(engine, case, 0)
        engine.close()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_are_rounded_between_ranks_alone_and_only_where_that_is_asked(ranks):
    cases = [
        Case(precision="bf16", chunks=4, reduce_dtype=dtype, **CALM) for dtype in ("bf16", "fp32")
    ]
    rounded, exact = run_ranks(share_of_rounded_gradients, ranks, cases)[0]
    assert exact < 0.5, f"fp32: {exact:.2f} of the gradients are bf16 numbers"
    assert rounded == 1 if ranks > 1 else rounded < 0.5, f"bf16, {ranks} ranks: {rounded:.2f}"


def compiled_on_a_rank(rank: int, cases: list[Case]) -> dict[Case, tuple[Any, list[str]]]:
    """Trained with compiled towers, and the functions that were compiled for it. By aot_eager,
    which traces and differentiates as for a GPU, and runs torch's own kernels."""
    from torch._dynamo import config
    from torch._dynamo.utils import clear_compilation_metrics, get_compilation_metrics

    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    found = {}
    for case in cases:
        clear_compilation_metrics()
        engine = build_engine(case)
        first = training(engine, case, range(2))
        config.error_on_recompile = True
        rest = training(engine, case, range(2, STEPS))
        config.error_on_recompile = False
        engine.close()
        rest.losses[:0], rest.norms[:0] = first.losses, first.norms
        every = get_compilation_metrics()  # a backward pass is one of its own, without a name
        frames = [f"{m.co_filename}:{m.co_name}" for m in every if m.co_name]
        found[case] = rest, frames
    return found


ONE = [Case(zero="2", compile=True, recompute=True, chunks=4)]
MORE = [
    Case(compile=True),
    Case(compile=True, recompute=True),
    Case(compile=True, precision="bf16", **CALM),
    Case(compile=True, precision="autocast", **CALM),
    Case(compile=True, chunks=4),
]


@pytest.mark.parametrize("cases", [ONE, pytest.param(MORE, marks=pytest.mark.soak)])
def test_compiled_towers_train_as_float64_and_nothing_else_is_compiled(cases):
    for case, (ours, frames) in run_ranks(compiled_on_a_rank, 1, cases)[0].items():
        theirs = train_in_float64(case)
        bounds = (1e-5, 1e-5, 1e-3) if case.precision == "fp32" else (4e-2, 2e-2, float("inf"))
        apart = (
            largest(ours.losses, theirs.losses),
            largest(ours.norms, theirs.norms, relative=True),
            error_of_the_move(ours, theirs),
        )
        assert all(a < b for a, b in zip(apart, bounds, strict=True)), f"{case}: {apart}"
        names = {frame.rsplit("/", 1)[-1] for frame in frames}
        assert names == {"image_tower.py:forward", "text_tower.py:forward"}, f"{case}: {names}"
        passes = 2 if case.chunks > 1 else 1  # without gradients, and with
        assert len(frames) == 2 * passes, f"{case}: {frames}"


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_memory_budget_changes_what_is_kept_and_no_number():
    found = run_ranks(kept_by_budget_on_a_rank, 1)[0]
    (whole, kept), (little, less) = found
    worst = max(abs(a - b) for a, b in zip(whole, little, strict=True))
    assert worst < 1e-5, f"losses differ by {worst}"
    assert less < 0.8 * kept, f"{less} bytes kept of {kept}"


def kept_by_budget_on_a_rank(rank: int) -> list[tuple[list[float], int]]:
    """Losses of compiled towers, and the bytes that their graphs keep, with and without budget."""
    found = []
    for budget in (None, 0.0):
        case = Case(compile=True, memory_budget=budget)
        engine = build_engine(case)
        kept = Counter()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.update(bytes=t.nbytes), t)[1], lambda t: t
        ):
            first = training(engine, case, range(1))
        rest = training(engine, case, range(1, STEPS))
        engine.close()
        found.append((first.losses + rest.losses, kept["bytes"]))
    return found


def before_and_after_zero_3(rank: int) -> list[Any]:
    """Weights that the same bf16 steps of ZeRO 1 give, before and after a ZeRO 3 engine."""
    found = []
    for case in (BF16, Case(zero="3", precision="bf16", **CALM), BF16):
        engine = build_engine(case)
        found.append(training(engine, case, range(2)).weights)
        engine.close()
    return found


def test_a_zero_3_engine_leaves_later_steps_bitwise_as_they_were():
    before, _, after = run_ranks(before_and_after_zero_3, 1)[0]
    apart = {name: float((after[name] - weight).abs().max()) for name, weight in before.items()}
    assert max(apart.values()) == 0, max(apart.items(), key=lambda item: item[1])
