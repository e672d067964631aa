"""What each precision costs and what it changes: loss beside fp32's, images/s and memory.

    python -m benchmarks.precision --data data/demo/train

The demo's recipe on one rank, the same steps and samples in each precision. Rows go to
results/precision.json as they are measured; rows of this machine's earlier call are measured anew.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import this_machine
from pretrain.base.files import write_durably
from pretrain.base.run_files import METRICS_FILE

RESULTS = Path(__file__).parent / "results/precision.json"
STEPS, TAIL, WARM = 200, 50, 20
KINDS = ("fp32", "autocast", "bf16")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One precision with one optimizer."""

    precision: str
    optimizer: str
    last_loss: float  # mean of the last TAIL steps
    distance: float  # mean |loss - fp32's loss| of the same step
    images_per_s: float  # median, without the first WARM steps
    host_memory_gib: float  # most that was seen


def run(precision: str, optimizer: str, data: Path, folder: Path) -> list[dict[str, Any]]:
    """The step events of one training."""
    run_dir = folder / f"{precision}-{optimizer}"
    command = [
        *(sys.executable, "-m", "pretrain.train", "--config", "pretrain/recipes/demo.yaml"),
        *("--data.train", str(data), "--run_dir", str(run_dir), "--evaluation.sets", "{}"),
        *("--engine.precision", precision, "--optimizer.kind", optimizer),
        *("--stages.reduced.steps", str(STEPS), "--stages.full.steps", "21"),
        *("--log.every_steps", "1", "--log.tensorboard", "false"),
    ]
    if optimizer == "adamw":
        command += ["--stages.reduced.base_learning_rate", "1e-3"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    events = map(json.loads, (run_dir / METRICS_FILE).read_text().splitlines())
    return [e for e in events if e["event"] == "step" and e["stage"] == "reduced"]


def main() -> None:
    """Measure all precisions with both optimizers."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=Path("data/demo/train"))
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in ("adamw", "muon"):
            exact: list[float] = []
            for precision in KINDS:
                steps = run(precision, optimizer, chosen.data, Path(folder))
                losses = [step["loss"] for step in steps]
                exact = exact or losses
                apart = [abs(a - b) for a, b in zip(losses, exact, strict=True)]
                row = Row(
                    precision=precision,
                    optimizer=optimizer,
                    last_loss=statistics.mean(losses[-TAIL:]),
                    distance=statistics.mean(apart),
                    images_per_s=statistics.median(s["images_per_s"] for s in steps[WARM:]),
                    host_memory_gib=max(step["host_memory_gib"] for step in steps),
                )
                rows.append(asdict(row))
                result = {
                    "machine": this_machine(ranks=1),
                    "date": date.today().isoformat(),
                    "steps": STEPS,
                    "rows": rows,
                }
                write_durably(RESULTS, json.dumps(result, indent=2) + "\n")
                print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
