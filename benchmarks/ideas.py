"""What each idea gains on the demo, at equal samples and at equal time, over seeds.

    make data
    python -m benchmarks.ideas [--minutes 20]

A row is written when its run has finished, to benchmarks/results/ideas.json; the same command goes
on with the runs that are missing. The schedule is that of the law (benchmarks/law_demo.yaml), less
than a third of the demo's. A run whose steps take longer than the plain one's by more than 2 % is
trained once more at the plain one's time: with fewer steps.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import this_machine
from benchmarks.trainings import run_row, train
from data_prep.__main__ import main as prepare
from pretrain.base.files import write_durably

RESULTS = Path(__file__).parent / "results" / "ideas.json"
RUNS = Path("runs/ideas")
DATA = Path("data/demo/train")
COLUMN = "subgroup"  # of the emoji: 98 concepts
STEPS = {"reduced": (480, 18), "full": (64, 6)}  # steps and warm-up
PLAIN = "plain"
IDEAS: dict[str, dict[str, str]] = {
    PLAIN: {},
    "caption classification": {"--loss.classification_weight": "1.0"},
    "balanced batches": {"--data.balance.concepts": COLUMN, "--data.balance.candidates": "5"},
    "ema": {"--engine.ema": "0.99"},
}
TOGETHER = "all together"
IDEAS[TOGETHER] = {name: value for idea in IDEAS.values() for name, value in idea.items()}
SETS = ("held_out_artist", "held_out_concepts")
_MORE = 1.02  # times the plain run's seconds


def arguments(idea: str, seed: int, share: float) -> list[str]:
    """Of `pretrain.train`; share: of the steps."""
    words = ["--config", "pretrain/recipes/demo.yaml", f"--seed={seed}"]
    for stage, (steps, warmup) in STEPS.items():
        words += [f"--stages.{stage}.steps={round(steps * share)}"]
        words += [f"--stages.{stage}.warmup_steps={warmup}"]
    words += ["--evaluation.every_steps=null", "--log.tensorboard=false"]
    return [*words, *(f"{name}={value}" for name, value in IDEAS[idea].items())]


def figure(row: dict[str, Any]) -> float:
    """The mean of R@1 over both sets and both directions: what the demo is judged by. Of averaged
    weights where the run has them."""
    averaged = [f"{one}.ema" for one in SETS if f"{one}.ema" in row["sets"]]
    found = [row["sets"][one] for one in averaged or SETS]
    return mean(part["r@1"] for one in found for name, part in one.items() if "_to_" in name)


def table(rows: dict[str, Any]) -> str:
    """A line an idea: mean of the seeds at equal samples and at equal time, and each seed."""
    lines = [
        "| idea | R@1, equal samples | seeds | seconds | R@1, equal time |",
        "|---|---|---|---|---|",
    ]
    for idea in IDEAS:
        equal = [row for row in rows.values() if row["idea"] == idea and row["share"] == 1]
        timed = [row for row in rows.values() if row["idea"] == idea and row["share"] != 1]
        if not equal:
            continue
        told = [figure(row) for row in equal]
        seconds = mean(row["seconds"] for row in equal)
        timely = f"{mean(figure(row) for row in timed):.1%}" if timed else "the same"
        seeds = ", ".join(f"{one:.1%}" for one in told)
        lines.append(f"| {idea} | {mean(told):.1%} | {seeds} | {seconds:.0f} | {timely} |")
    return "\n".join(lines)


def wanted(rows: dict[str, Any], seeds: int) -> list[tuple[str, int, float]]:
    """Runs that are missing: (idea, seed, share of the steps)."""
    found = [(idea, seed, 1.0) for seed in range(seeds) for idea in IDEAS]
    for idea, seed, _ in list(found):
        one, plain = rows.get(key(idea, seed, 1.0)), rows.get(key(PLAIN, seed, 1.0))
        if one and plain and one["seconds"] > _MORE * plain["seconds"]:
            told = [row for row in rows.values() if row["idea"] == idea and row["share"] != 1]
            share = told[0]["share"] if told else round(plain["seconds"] / one["seconds"], 2)
            found.append((idea, seed, share))
    return [run for run in found if key(*run) not in rows]


def key(idea: str, seed: int, share: float) -> str:
    return f"{idea}, seed {seed}, {share:.2f} of the steps"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="Begin no run after so many minutes.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    asked = parser.parse_args()
    begun = time.monotonic()
    machine = this_machine(asked.ranks)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    if not (DATA / "concepts" / f"{COLUMN}.npy").exists():
        prepare(["weigh", str(DATA), "--by", COLUMN, "--out", COLUMN])
    while missing := wanted(rows, asked.seeds):
        if asked.minutes is not None and time.monotonic() - begun > 60 * asked.minutes:
            break
        idea, seed, share = missing[0]
        name = key(idea, seed, share)
        run = RUNS / name.replace(" ", "_").replace(",", "")
        print(f"{name}; {len(missing)} runs are missing", flush=True)
        train(run, arguments(idea, seed, share), machine)
        sets = [*SETS, *(f"{one}.ema" for one in SETS if "--engine.ema" in IDEAS[idea])]
        rows[name] = {"idea": idea, "seed": seed, "share": share, **run_row(run, sets)}
        told = {"machine": machine, "rows": rows}
        write_durably(RESULTS, json.dumps(told, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
