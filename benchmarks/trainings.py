"""Trainings that a comparison starts, goes on with where they stopped, or finds finished."""

import argparse
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.comparison_file import recipe_sha256
from pretrain.recipe.parsing import parse, read_recipe
from pretrain.recipe.recipe import Recipe
from pretrain.report.run_folder import Run, read_run
from pretrain.report.summary import final_figures, sets_of, training_s


def train(run: Path, arguments: list[str], machine: dict[str, Any]) -> None:
    """Train a run folder to its end, from where it stands; nothing to do where it is finished.

    arguments: of `python -m pretrain.train`, without the run folder. ValueError if the folder
    holds another training.
    """
    if run.is_dir():
        recipe, _ = parse([*arguments, "--run_dir", str(run)])
        found = read_run(run)
        if (otherwise := differs(found, recipe, machine)) is not None:
            raise ValueError(
                f"{run} holds a run {otherwise}: remove it, or give another folder as --runs"
            )
        if found.is_finished:
            return
    start([*_launcher(machine["ranks"]), "pretrain.train", *arguments, f"--run_dir={run}"])


def _launcher(ranks: int) -> list[str]:
    """What starts a module on some ranks; one rank needs no second process to watch it."""
    if ranks == 1:
        return ["-m"]
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]


def start(arguments: list[str]) -> None:
    """Run a Python command line to its end; CalledProcessError if it fails."""
    command = [sys.executable, *arguments]
    # In a session of its own, a Ctrl-C reaches it by us alone, and once.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # a launcher that is killed outright leaves its ranks training
            process.wait()
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def differs(run: Run, recipe: Recipe, machine: dict[str, Any]) -> str | None:
    """How a run was trained otherwise than asked now, in words; None if it was not."""
    if run.recipe is not None:
        own = _recipe_of(run)
        if own is None:
            return "of another recipe"
        if own.data.train.resolve() != recipe.data.train.resolve():
            return f"on the data {own.data.train}"
        if own.seed != recipe.seed or recipe_sha256(own) != recipe_sha256(recipe):
            return "of another recipe or seed"
    precision = recipe.engine.precision
    if precision == "auto":
        precision = "bf16" if machine["bf16"] else "fp32"
    for begin in run.starts:
        made = {
            "ranks": begin.get("world_size"),
            "precision": begin.get("precision"),
            "torch": begin.get("versions", {}).get("torch"),
        }
        asked = {"ranks": machine["ranks"], "precision": precision, "torch": machine["torch"]}
        for key, value in made.items():
            if value != asked[key]:
                return f"of {key} {value}, not {asked[key]}"
    return None


def _recipe_of(run: Run) -> Recipe | None:
    """The recipe that a run folder shows; None if today's code cannot read it."""
    try:
        return read_recipe(run.folder)
    except (argparse.ArgumentError, ValueError, TypeError):
        return None


def run_row(folder: Path, sets: list[str]) -> dict[str, Any]:
    """What a finished run folder says of its training and of its evaluation sets, as a row has it.

    Over a resume the seconds add up: the steps that were lost and trained again count once.
    """
    run = read_run(folder)
    seconds = training_s(run)
    if seconds is None:
        raise ValueError(f"{folder} has no timed training step: remove it, and run again")
    found = sets_of(final_figures(run))
    commits = dict.fromkeys(begin["commit"] for begin in run.starts if begin.get("commit"))
    end = [event for event in run.events if event["event"] == "end"][-1]
    date = datetime.fromtimestamp(end["time"], timezone.utc)
    return {
        "seconds": seconds,
        "samples": run.samples_seen,
        "images_per_s": run.samples_seen / seconds,
        "sets": {one: found[one] for one in sets},
        "run": str(folder),
        "commit": ", ".join(commits) or None,  # several where it was resumed by other code
        "date": date.isoformat(timespec="seconds"),
    }
