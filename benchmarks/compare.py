"""The paper's claim at the demo's scale: two stages against full tokens for the same time.

    python -m benchmarks.compare --seeds "[0, 1, 2]" --out runs/comparison.json

For each seed: the recipe's two stages, taken over from a finished run where there is one; full
tokens from scratch, with as many steps as the two stages' training time allows; a CNN with a bag
of words for the same time. All one after the other on the same machine, so that the ratios hold
where the absolute times do not. Each row is written when it is finished; the same command goes on
where a killed one stopped.
"""

import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli, set_parsing_settings

from benchmarks.comparison_file import check_beside, put_row, read_rows, recipe_sha256
from benchmarks.comparison_page import write_comparison_page
from benchmarks.comparison_table import print_comparison
from benchmarks.machine import this_machine
from benchmarks.trainings import differs, run_row, start, train
from pretrain.recipe.parsing import parse
from pretrain.recipe.recipe import Recipe
from pretrain.report.run_folder import read_run
from pretrain.report.summary import final_figures, sets_of

TWO_STAGE, CONTROL, CNN = "two-stage CLIPA", "full tokens from scratch", "CNN + bag of words"
_WARM_STEPS, _PROBE_STEPS = 5, 20  # of full-token training: let pass, then timed


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, and where the rows go."""

    out: Path = Path("benchmarks/results/demo_compare.json")
    """Comparison file; a page that shows it beside the run is written next to it."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; each trains all three models."""
    ranks: int = 2
    """Processes of the two transformer trainings; the CNN gets as many threads."""
    recipe: Path = Path("pretrain/recipes/demo.yaml")
    """Recipe of the two stages; its data and evaluation sets are every row's."""
    control: Path = Path("benchmarks/demo_full_tokens.yaml")
    """Recipe file, given after it, that makes it full tokens from scratch in one stage."""
    finished_run: Path = Path("runs/demo")
    """Run folder that is taken over, where it holds a finished run of the recipe and a seed."""
    runs: Path = Path("runs/compare")
    """Where the run folders of all other trainings go."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give at least one, and each once")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is asked for, resolved: the recipes without a seed of their own, and the machine."""

    options: CompareOptions
    recipe: Recipe
    control: Recipe
    machine: dict[str, Any]
    budget: float | None  # seconds of training that every row is given, once that is known

    @classmethod
    def resolve(cls, options: CompareOptions) -> "Comparison":
        """ValueError on recipes that cannot be compared, or a file of another comparison."""
        rows = read_rows(options.out)
        known = [row["seconds_budget"] for row in rows if row["name"] == TWO_STAGE]
        if rows and not known:
            raise ValueError(
                f"{options.out} holds rows without those of {TWO_STAGE}, whose time the others "
                "are given: give another --out, or remove the file"
            )
        result = cls(
            options=options,
            recipe=parse(["--config", str(options.recipe)])[0],
            control=parse(_control_arguments(options))[0],
            machine=this_machine(options.ranks),
            budget=known[0] if known else None,
        )
        if len(result.control.stages) != 1:
            raise ValueError(
                f"{options.control} gives the stages {list(result.control.stages)}: leave it one"
            )
        if not result.recipe.evaluation.sets:
            raise ValueError(f"{options.recipe} evaluates on nothing: give it evaluation.sets")
        for name in (TWO_STAGE, CONTROL, CNN):
            check_beside(options.out, result.head(name))
        return result

    def head(self, name: str) -> dict[str, Any]:
        """What a row of a name says of where it comes from."""
        recipe = self.control if name == CONTROL else self.recipe
        head = {"name": name, "recipe_sha256": recipe_sha256(recipe), "machine": self.machine}
        return head if self.budget is None else {**head, "seconds_budget": self.budget}

    @property
    def given_s(self) -> float:
        assert self.budget is not None, "the two-stage row comes first"
        return self.budget

    def has(self, name: str, seed: int) -> bool:
        rows = read_rows(self.options.out)
        return any((row["name"], row["seed"]) == (name, seed) for row in rows)

    def put(self, name: str, seed: int, made: dict[str, Any]) -> None:
        put_row(self.options.out, {**self.head(name), "seed": seed, **made})


def compare(options: CompareOptions) -> None:
    """Train all three models for every seed, write their rows, print and report them."""
    comparison = Comparison.resolve(options)
    for seed in options.seeds:
        if not comparison.has(TWO_STAGE, seed):
            comparison = put_two_stage(comparison, seed)
        if not comparison.has(CONTROL, seed):
            put_control(comparison, seed)
        if not comparison.has(CNN, seed):
            put_cnn(comparison, seed)
    rows = read_rows(options.out)
    first = next(row for row in rows if row["name"] == TWO_STAGE)
    if Path(first["run"]).is_dir():
        print(write_comparison_page(Path(first["run"]), options.out))
    print_comparison(rows, TWO_STAGE)


def put_two_stage(comparison: Comparison, seed: int) -> Comparison:
    """Take the run over, or train it, and put its row; the first one's time is the budget."""
    options = comparison.options
    run = taken_over(comparison, seed)
    if run is None:
        run = options.runs / f"two_stage_{seed}"
        common = [f"--seed={seed}", "--evaluation.every_steps=null"]
        train(run, ["--config", str(options.recipe), *common], comparison.machine)
    made = run_row(run, list(comparison.recipe.evaluation.sets))
    if comparison.budget is None:
        comparison = replace(comparison, budget=round(made["seconds"], 1))
    comparison.put(TWO_STAGE, seed, made)
    return comparison


def taken_over(comparison: Comparison, seed: int) -> Path | None:
    """The finished run of the recipe with that seed; None, and why, if it is not there."""
    folder = comparison.options.finished_run
    if not folder.is_dir():
        return None
    asked, _ = parse(["--config", str(comparison.options.recipe), f"--seed={seed}"])
    run = read_run(folder)
    why = differs(run, asked, comparison.machine)
    if why is None and not run.is_finished:
        why = "that is not finished"
    if why is None and (missing := set(asked.evaluation.sets) - set(sets_of(final_figures(run)))):
        why = f"that was not evaluated on {sorted(missing)}"
    if why is not None:
        print(f"two stages of seed {seed} are trained: {folder} holds a run {why}", flush=True)
        return None
    print(f"two stages of seed {seed} are taken over from {folder}", flush=True)
    return folder


def put_control(comparison: Comparison, seed: int) -> None:
    """Train full tokens from scratch for about the budget, and put the row."""
    options = comparison.options
    budget = comparison.given_s
    (name,) = comparison.control.stages
    arguments = [*_control_arguments(options), f"--seed={seed}", "--evaluation.every_steps=null"]

    probe = options.runs / f"probe_{seed}"
    steps = f"--stages.{name}.steps={_WARM_STEPS + _PROBE_STEPS}"
    plain = ["--evaluation.sets={}", "--evaluation.zero_shot={}", "--log.every_steps=1"]
    train(probe, [*arguments, steps, *plain], comparison.machine)
    timed = [step["step_s"] for step in read_run(probe).steps[_WARM_STEPS:]]

    count = max(1, round(budget / statistics.mean(timed)))
    print(f"{CONTROL}: {count} steps in {budget:g} s", flush=True)
    run = options.runs / f"full_tokens_{seed}"
    train(run, [*arguments, f"--stages.{name}.steps={count}"], comparison.machine)
    comparison.put(CONTROL, seed, run_row(run, list(comparison.recipe.evaluation.sets)))


def _control_arguments(options: CompareOptions) -> list[str]:
    return ["--config", str(options.recipe), "--config", str(options.control)]


def put_cnn(comparison: Comparison, seed: int) -> None:
    """Train the CNN for the budget; it puts its own row."""
    options, recipe = comparison.options, comparison.recipe
    sets = [f"--sets={name}={folder}" for name, folder in recipe.evaluation.sets.items()]
    where = [f"--data={recipe.data.train}", f"--recipe={options.recipe}", f"--out={options.out}"]
    how = [f"--name={CNN}", f"--seconds={comparison.given_s!r}", f"--threads={options.ranks}"]
    start(["-m", "benchmarks.cnn_baseline", *sets, *where, *how, f"--seed={seed}"])


def main() -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        compare(auto_cli(CompareOptions, as_positional=False))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: `{' '.join(error.cmd)}` failed with exit code {error.returncode} (its own "
            "message is above): fix the cause; the same command goes on from here"
        )


if __name__ == "__main__":
    main()
