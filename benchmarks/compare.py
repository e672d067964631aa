"""The paper's claim at the demo's scale: two stages against full tokens for the same time.

    python -m benchmarks.compare --seeds "[0, 1, 2]" --out runs/comparison.json

For each seed: the demo recipe's two stages; full tokens from scratch, with as many steps as the
two stages' training time allows; a CNN with a bag of words for the same time. All one after the
other on the same machine, so that the ratios hold where the absolute times do not.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli, set_parsing_settings

from benchmarks.comparison_file import put_row
from pretrain.report.run_folder import read_run
from pretrain.report.summary import training_s

DEMO = "pretrain/recipes/demo.yaml"
CONTROL = "benchmarks/demo_full_tokens.yaml"
SETS = ("held_out_artist", "held_out_concepts")
_PROBE_STEPS = 10  # of full-token training, to learn what a step takes here


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, and where the rows go."""

    out: Path = Path("runs/comparison.json")
    """Comparison file, for `python -m pretrain.report --comparison`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds; each trains all three models."""
    ranks: int = 2
    """Processes of the two transformer trainings; the CNN gets as many threads."""
    data: Path = Path("data/demo")
    """Folder of the demo's datasets."""
    runs: Path = Path("runs/compare")
    """Where the run folders go."""


def compare(options: CompareOptions) -> None:
    """Train all three models for every seed and write their rows."""
    for seed in options.seeds:
        two_stage = options.runs / f"two_stage_{seed}"
        _train(options, two_stage, seed, DEMO)
        seconds = training_seconds(two_stage)
        budget = float(round(_budget(options, seconds)))
        put_row(options.out, budget, run_row("two-stage CLIPA", seed, two_stage))

        probe = options.runs / f"probe_{seed}"
        _train(options, probe, seed, DEMO, CONTROL, f"--stages.full.steps={_PROBE_STEPS}")
        steps = max(1, round(budget / (training_seconds(probe) / _PROBE_STEPS)))
        control = options.runs / f"full_tokens_{seed}"
        _train(options, control, seed, DEMO, CONTROL, f"--stages.full.steps={steps}")
        put_row(options.out, budget, run_row("full tokens from scratch", seed, control))
        _train_cnn(options, seed, budget)


def _budget(options: CompareOptions, seconds: float) -> float:
    """The time of the first seed's two stages, which every later row gets as well."""
    if options.out.is_file():
        return float(json.loads(options.out.read_text(encoding="utf-8"))["seconds_budget"])
    return seconds


def _train(options: CompareOptions, run: Path, seed: int, *arguments: str) -> None:
    recipes = [a for a in arguments if not a.startswith("--")]
    overrides = [a for a in arguments if a.startswith("--")]
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(options.ranks), "-m", "pretrain.train"),
            *(word for recipe in recipes for word in ("--config", recipe)),
            *("--run_dir", str(run), "--seed", str(seed), *overrides),
            *("--evaluation.every_steps", "null", "--data.train", str(options.data / "train")),
        ],
        check=True,
    )


def _train_cnn(options: CompareOptions, seed: int, seconds: float) -> None:
    sets = [word for name in SETS for word in ("--sets", f"{name}={options.data / name}")]
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.cnn_baseline", "--data", options.data / "train"),
            *(*sets, "--seconds", f"{seconds:g}", "--seed", str(seed)),
            *("--threads", str(options.ranks), "--out", options.out),
        ],
        check=True,
    )


def training_seconds(run: Path) -> float:
    """Time spent in training steps, data waits included, evaluation and checkpoints left out."""
    seconds = training_s(read_run(run))
    if seconds is None:
        raise ValueError(f"{run} has no timed training step: remove the folder and run it again")
    return seconds


def run_row(name: str, seed: int, run: Path) -> dict[str, Any]:
    """A finished run folder as a row of the comparison file."""
    seconds = training_seconds(run)
    figures = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    samples = figures["stages"][-1]["samples_seen"]
    return {
        "name": name,
        "seed": seed,
        "seconds": seconds,
        "samples": samples,
        "images_per_s": samples / seconds,
        "sets": {one: figures[one] for one in SETS},
    }


if __name__ == "__main__":
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    compare(auto_cli(CompareOptions, as_positional=False))
