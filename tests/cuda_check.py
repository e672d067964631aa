"""Training is correct on this machine's GPUs: one command, one table.

    make cuda-check                 one rank
    make cuda-check RANKS=8         as many ranks, one a GPU
    make cuda-check CASES='muon|compile' BACKEND=aot_eager    some cases; a compiler

Batches are brought to the device while it is busy, and must arrive whole. Every engine case trains
five steps of a small CLIP and is held against one float64 process on the CPU; then it is saved,
resumed in a new engine, and must go on bitwise. Exit status 1 where a row fails; the row names the
first weight that is apart. Without a GPU it runs on the CPU, and says so.
"""

import argparse
import functools
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from engine_cases import (
    STEPS,
    Case,
    Training,
    build_engine,
    error_of_the_move,
    largest,
    save_whole,
    small_clip,
    train_in_float64,
    training,
)
from fed_batches import check_feed

from pretrain.base import distributed
from pretrain.base.distributed import Runtime

CALM = {"learning_rate": 5e-5, "eps": 1e-2}
CASES = [
    *(Case(zero=zero, chunks=chunks) for zero in ("1", "2", "3") for chunks in (1, 4)),
    Case(zero="3", recompute=True),
    *(Case(zero=zero, precision="bf16", **CALM) for zero in ("1", "2", "3")),
    Case(zero="1", precision="autocast", **CALM),
    Case(zero="2_offload", precision="bf16", **CALM),
    Case(zero="3_offload", precision="bf16", **CALM),
    *(Case(zero=zero, kind="muon", precision="bf16", **CALM) for zero in ("1", "2", "3")),
    Case(zero="1", compile=True),
    Case(zero="1", compile=True, recompute=True),
    Case(zero="1", compile=True, chunks=4),
    Case(zero="2", compile=True, recompute=True, chunks=4),
    Case(zero="1", compile=True, precision="bf16", **CALM),
    Case(zero="1", compile=True, precision="autocast", **CALM),
]
# (loss, gradient norm, weights' move) apart from float64's: TF32 and fused attention round more
# than a CPU does.
FP32, ROUNDED = (1e-3, 1e-3, 2e-2), (4e-2, 2e-2, float("inf"))


@dataclass(frozen=True, kw_only=True)
class Found:
    """How far one case is from its judge, and whether its resume is bitwise."""

    loss: float
    norm: float
    move: float
    resumes: bool
    seconds: float
    apart: str  # the first weight that is further from the judge's than its bound
    differs: str  # the first weight that a resume changes

    def passes(self, case: Case) -> bool:
        measured = (self.loss, self.norm, self.move)
        return self.resumes and all(a < b for a, b in zip(measured, bounds(case), strict=True))


def bounds(case: Case) -> tuple[float, float, float]:
    return FP32 if case.precision == "fp32" and case.kind == "adamw" else ROUNDED


def first_apart(ours: Training, theirs: Training, bound: float) -> str:
    """The first weight whose move is further from the judge's than `bound` times that, and how far;
    empty where there is none."""
    for name, start in small_clip().state_dict().items():
        move = (theirs.weights[name].double() - start.double()).norm()
        error = float((ours.weights[name].double() - theirs.weights[name].double()).norm() / move)
        if not error <= bound:
            return f"{name} {error:.1e}"
    return ""


def check_collectives(runtime: Runtime) -> str:
    """A sum, a gather and a scatter over all ranks, and what they ran by."""
    place, world = runtime.device, runtime.world_size
    ones = torch.ones(1 << 20, device=place)
    dist.all_reduce(ones)
    assert ones.eq(world).all(), "all_reduce"
    own = torch.full((4,), float(runtime.rank), device=place)
    gathered = torch.empty(4 * world, device=place)
    dist.all_gather_into_tensor(gathered, own)
    assert gathered.view(world, 4)[:, 0].tolist() == list(range(world)), "all_gather"
    part = torch.empty(4, device=place)
    dist.reduce_scatter_tensor(part, gathered)
    assert part.eq(world * runtime.rank).all(), "reduce_scatter"
    return f"{dist.get_backend()}, {world} ranks"


def check(case: Case, judge: Training, folder: Path) -> Found:
    """Train, save, resume. Collective."""
    from pretrain.run import checkpoint
    from pretrain.run.record import RunState

    begin = time.perf_counter()
    engine = build_engine(case)
    types: set[torch.dtype] = set()
    projection = engine.engine.module.image_projection
    hook = projection.register_forward_hook(lambda _, __, found: types.add(found.dtype))
    ours = training(engine, case, range(STEPS))
    hook.remove()
    wanted = torch.float32 if case.precision == "fp32" else torch.bfloat16
    assert types == {wanted}, f"{case}: matrix products are in {types}"
    state = RunState(step=STEPS)
    save_whole(engine, folder, state)
    expected = training(engine, case, range(STEPS, STEPS + 2))
    engine.close()
    resumed = build_engine(case, disturb=True)
    checkpoint.load(resumed, folder, state.tag, late_files_s=30.0)
    again = training(resumed, case, range(STEPS, STEPS + 2))
    resumed.close()
    changed = [n for n, w in expected.weights.items() if not torch.equal(again.weights[n], w)]
    return Found(
        loss=largest(ours.losses, judge.losses),
        norm=largest(ours.norms, judge.norms, relative=True),
        move=error_of_the_move(ours, judge),
        resumes=again.losses == expected.losses and not changed,
        seconds=time.perf_counter() - begin,
        apart=first_apart(ours, judge, bounds(case)[2]),
        differs=next(iter(changed), ""),
    )


def main() -> int:
    """Check all cases, or those whose name matches."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cases", default="", help="a regular expression, found in their names")
    options.add_argument("--backend", default="inductor", help="torch.compile's")
    chosen = options.parse_args()
    torch.compile = functools.partial(torch.compile, backend=chosen.backend)
    runtime = distributed.start()

    def say(line: str) -> None:
        if runtime.is_main:
            print(line, flush=True)

    place = runtime.device
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU: no GPU is here"
    say(f"{name}, torch {torch.__version__}, {check_collectives(runtime)}")
    check_feed(place, pinned=place.type == "cuda")
    say("batches arrive whole while the device is busy")
    say(f"{'case':<58} {'loss':>9} {'norm':>9} {'move':>9}  resume  seconds")
    failed = 0
    judges: dict[tuple[str, float, float], Training] = {}
    for case in CASES:
        words = [f"ZeRO {case.zero}", case.kind, case.precision]
        words += ["two passes"] * (case.chunks > 1) + ["recompute"] * case.recompute
        words += ["compile"] * case.compile
        title = ", ".join(words)
        if not re.search(chosen.cases, title):
            continue
        key = (case.kind, case.eps, case.learning_rate)
        if key not in judges:
            judges[key] = train_in_float64(case)
        with tempfile.TemporaryDirectory() as folder:
            shared = Path(distributed.broadcast_object(folder))
            found = check(case, judges[key], shared)
            dist.barrier()
        passes = found.passes(case)
        failed += not passes
        say(
            f"{title:<58} {found.loss:>9.1e} {found.norm:>9.1e} {found.move:>9.1e}  "
            f"{'bitwise' if found.resumes else 'DIFFERS'} {found.seconds:>6.1f}"
            f"{'' if passes else f'   FAILED {found.apart} {found.differs}'.rstrip()}"
        )
    say(f"{failed} failed" if failed else "all passed")
    distributed.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
