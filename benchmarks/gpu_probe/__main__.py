"""A GPU's step taken apart in nine minutes.

    python -m benchmarks.gpu_probe                    # on one GPU; on a CPU all of it at toy size
    python -m benchmarks.gpu_probe --steps D F        # those again
    python -m benchmarks.gpu_probe --show FILE        # the table of earlier rows

  A  rates of the real matrix products and of a copy
  B  attention kernels at the real lengths, with their error against float64
  C  B/16, 16 text tokens: one measure after the other, losses compared
  D  the other shapes, without and with all measures
  E  the loss in fp32 and TF32; steps of few samples, where the host's work shows
  F  compiled cases of tests/cuda_check.py by three compilers
  G  open_clip with its fastest settings
  H  the kernels of the last variant, as text beside the rows
  I  CUDA graphs at few samples; ZeRO 2's reduction beside the backward pass, on one GPU or several

A row is on the disk before the next is measured, so a killed run keeps its rows; the newest of a
name counts. A step that overruns its deadline ends with a row that says so, as soon as Python runs;
where a CUDA call hangs, the process ends 20 s later and says where: call again for the rest. Steps
that are asked for alone share all of the time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_probe import kernels, steps, untried
from benchmarks.gpu_probe.compiled_cases import compiled_cases
from benchmarks.gpu_probe.plan import GPU, TOY, Plan
from benchmarks.gpu_probe.rows import OverrunError, Rows, deadline
from benchmarks.gpu_probe.table import show
from pretrain.base import distributed
from pretrain.base.distributed import Runtime

RESULTS = Path(__file__).parents[1] / "results/gpu_probe.jsonl"
TOYS = Path(tempfile.gettempdir()) / "gpu_probe_toy.jsonl"
Run = Callable[[], None]
# Of the seconds that are left, a step may take its share among the steps that are left. Most of C,
# D, G and H is the compiler's.
SHARES = {"A": 20, "B": 40, "C": 90, "D": 120, "E": 40, "F": 90, "G": 45, "H": 15, "I": 60}


def of_letters(plan: Plan, rows: Rows, runtime: Runtime) -> dict[str, tuple[Run, ...]]:
    """What a step's letter runs."""
    device = runtime.device
    return {
        "A": (partial(kernels.ceilings, plan, rows, device),),
        "B": (partial(kernels.attentions, plan, rows, device),),
        "C": (partial(steps.measures_added, plan, rows, runtime),),
        "D": (partial(steps.other_shapes, plan, rows, runtime),),
        "E": (
            partial(kernels.losses, plan, rows, device),
            partial(steps.small_batches, plan, rows, runtime),
        ),
        "F": (partial(compiled_cases, plan, rows),),
        "G": (partial(steps.beside_open_clip, plan, rows, runtime),),
        "H": (partial(steps.kernel_table, plan, rows, runtime),),
        # The last: a graph that fails may leave the device unusable.
        "I": (
            partial(untried.overlap, plan, rows, runtime),
            partial(untried.graphs, plan, rows, runtime),
        ),
    }


def main() -> None:
    """Measure the chosen steps, then show every row of the file."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", nargs="+", choices=SHARES, default=list(SHARES))
    options.add_argument("--toy", action="store_true", help="at toy size, as on a CPU")
    options.add_argument("--total-s", type=float, default=525, help="seconds that the steps share")
    options.add_argument("--out", type=Path, help=f"default {RESULTS.name}; of a toy in {TOYS}")
    options.add_argument("--show", type=Path, metavar="FILE", help="only print a file's table")
    chosen = options.parse_args()
    if chosen.show:
        print(show(chosen.show))
        return
    ends = time.monotonic() + chosen.total_s
    runtime = distributed.start()
    on_gpu = runtime.device.type == "cuda"
    plan = GPU if on_gpu and not chosen.toy else TOY
    out = chosen.out or (RESULTS if plan is GPU else TOYS)
    out = out if runtime.is_main else out.with_suffix(f".{runtime.rank}.jsonl")
    rows = Rows(out, torch.cuda.get_device_name(runtime.device) if on_gpu else "cpu")
    runs = of_letters(plan, rows, runtime)
    with steps.compiler(plan):
        for at, letter in enumerate(chosen.steps):
            rows.step = letter
            begin = time.monotonic()
            left = (ends - begin) * SHARES[letter] / sum(SHARES[n] for n in chosen.steps[at:])
            if left <= 1:
                rows.write("all", error=f"not begun: {chosen.total_s:.0f} s are over")
                continue
            try:
                with deadline(left):
                    for run in runs[letter]:
                        run()
            except OverrunError as error:
                rows.write("all", error=str(error))
            else:
                rows.write("all", took_s=round(time.monotonic() - begin, 1))
    print(show(out))
    distributed.stop()


if __name__ == "__main__":
    main()
