"""F: the compiled cases of tests/cuda_check.py by each compiler, in an order that once failed."""

import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.gpu_probe.plan import Plan
from benchmarks.gpu_probe.rows import OverrunError, Row, Rows

ROOT = Path(__file__).resolve().parents[2]
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def compiled_cases(plan: Plan, rows: Rows) -> None:
    """A row a backend and order: the table's lines, the wrong ones with the first weight apart. All
    at once, each a process of its own, which ends with the step's deadline at the latest."""
    with ExitStack() as running:
        begun = {}
        for backend in plan.backends:
            for order, pattern in plan.compiler_cases.items():
                name = f"compiled cases {order}, {backend}"
                begun[name] = running.enter_context(begin(pattern, backend))
                running.callback(begun[name].kill)
        try:
            for name in list(begun):
                rows.measure(name, partial(found, begun[name]))
                del begun[name]
        except OverrunError as error:
            for name, process in begun.items():
                process.kill()
                rows.write(name, **found(process), error=str(error))
            raise


def begin(pattern: str, backend: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests/support")))
    alone = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    return subprocess.Popen(
        [sys.executable, "tests/cuda_check.py", "--cases", pattern, "--backend", backend],
        cwd=ROOT,
        env={**alone, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def found(process: subprocess.Popen[str]) -> Row:
    # Without a timeout, what an OverrunError interrupts would lose the lines it has read.
    lines = process.communicate(timeout=3600)[0].splitlines()
    return {
        "passed": process.returncode == 0,
        "failed": [line for line in lines if "FAILED" in line],
        "cases": [line for line in lines if line.startswith("ZeRO ")],
        "end": lines[-3:],
    }
