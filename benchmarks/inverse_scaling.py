"""The inverse scaling law by one command: accuracy lost against tokens removed, by model size.

    python -m benchmarks.inverse_scaling --config benchmarks/law_demo.yaml \\
        --out benchmarks/results/law_demo [--slice-minutes 20] [--cell 0] [--plot-only]

Each cell of the sweep is a reduced stage at equal samples and the short full-token stage, trained
by `python -m pretrain.train`, one run after the other. A row is written when its run has finished;
the same command goes on with the runs that are missing, a half-trained one from its checkpoint.
"""

import argparse
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from benchmarks.law_picture import table, write_picture
from benchmarks.law_rows import (
    Row,
    check_folder,
    check_rows,
    estimate_s,
    own_folder,
    put_row,
    read_rows,
    row_path,
)
from benchmarks.law_sweep import Sweep, Training, cells, resolve
from benchmarks.machine import this_machine
from benchmarks.trainings import train
from pretrain.base.faults import one_line_faults
from pretrain.base.spelling import spell

_GRACE_S = 20.0  # of a slice, for a launcher to end its ranks and for the picture


class SliceOverError(Exception):
    """The time of this slice is up."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The time that this call may take."""

    minutes: float | None
    begun: float  # time.time

    @property
    def left_s(self) -> float | None:
        """Seconds that are left for training; None without a limit."""
        if self.minutes is None:
            return None
        whole = 60 * self.minutes
        return whole - min(_GRACE_S, whole / 10) - (time.time() - self.begun)


def choose(
    missing: list[Training], rows: list[Row], left_s: float | None, is_first: bool
) -> Training | None:
    """The next run: the first missing one that fits the time left, by an estimate of the rows.

    The first of a slice always starts: it goes on next time, and a sweep gets on in any slices.
    """
    for one in missing:
        expected = estimate_s(rows, one.flops)
        if left_s is None or is_first or ((expected or 0.0) <= left_s and left_s > 0):
            return one
    return None


def run_sweep(
    sweep: Sweep, out: Path, ranks: int, limit: Slice, only: int | None = None
) -> list[Training]:
    """Train what is missing, as far as the slice goes; returns what is left of what was asked."""
    trainings = resolve(sweep, ranks)
    if only is not None and not 0 <= only < len(trainings):
        raise ValueError(f"--cell {only}: the sweep has {len(trainings)} cells, from 0")
    own_folder(out, sweep)
    check_rows(_rows(out, sweep), trainings)
    asked = trainings if only is None else [trainings[only]]
    machine = this_machine(ranks)
    is_first = True
    while left := [one for one in asked if not row_path(out, one.cell).is_file()]:
        one = choose(left, _rows(out, sweep), limit.left_s, is_first)
        if one is None:
            break
        is_first = False
        name = one.cell.name
        place = trainings.index(one)
        print(f"cell {place} of {len(trainings)}: {name}, {one.flops:.2e} FLOPs", flush=True)
        run = sweep.runs / name
        try:
            with _alarm(limit.left_s):
                train(run, one.arguments, machine)
        except SliceOverError:
            print(f"\nthe slice is over: {name} goes on from its last checkpoint", flush=True)
            break
        put_row(out, one, run, machine)
    return left


def _rows(out: Path, sweep: Sweep) -> list[Row]:
    return read_rows(out, cells(sweep))


@contextmanager
def _alarm(left_s: float | None) -> Iterator[None]:
    """SliceOverError inside when the time is up; a training under way is ended by it."""

    def end(number: int, frame: Any) -> None:
        raise SliceOverError

    if left_s is not None:
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _say_left(left: list[Training], rows: list[Row], whole: int) -> None:
    print(f"{len(rows)} of {whole} runs are finished")
    if left:
        known = [estimate_s(rows, one.flops) for one in left]
        minutes = sum(expected for expected in known if expected is not None) / 60
        about = f", about {minutes:.0f} min" if minutes else ""
        print(f"left{about}: {' '.join(one.cell.name for one in left)}; the same command goes on")


def parser() -> ArgumentParser:
    """The command line: `--config FILE` of a sweep, and what is done with it now."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    result = ArgumentParser(
        prog="benchmarks.inverse_scaling",
        description="Accuracy lost against tokens removed, by model size. The same command goes "
        "on with the runs that are missing.",
        exit_on_error=False,
    )
    result.add_argument("--config", action="config", help="Sweep YAML: benchmarks/law_demo.yaml.")
    result.add_argument("--out", type=Path, required=True, help="Results folder of this sweep.")
    result.add_argument("--ranks", type=int, default=2, help="Processes of each training.")
    result.add_argument(
        "--slice-minutes", type=float, help="End in so many minutes, and say what is left."
    )
    result.add_argument("--cell", type=int, help="Train this cell alone, counted from 0.")
    result.add_argument("--plot-only", action="store_true", help="Draw the rows; train nothing.")
    result.add_class_arguments(Sweep, as_group=False)
    return result


def parse(words: list[str]) -> tuple[Sweep, Namespace]:
    """(the sweep, what is done with it). ValueError or OSError in one line."""
    for option, value in itertools.pairwise(words):
        if option == "--config":
            spell([option, value], (Sweep,), takes_config=True)
    options = parser()
    try:
        parsed = options.parse_args(words)
        values = options.instantiate(parsed)
    except argparse.ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    for name in ("ranks", "slice_minutes"):
        if (given := values[name]) is not None and not given > 0:
            raise ValueError(f"--{name.replace('_', '-')} {given}: it must be positive")
    return Sweep(**{name: values[name] for name in Sweep.__dataclass_fields__}), values


def main(words: list[str] | None = None) -> None:
    """Exit status: 0 done or the slice is over, 2 the request cannot be met, 1 a run failed."""
    limit_begun = psutil.Process().create_time()  # the imports above are of the slice too
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    with one_line_faults():
        sweep, asked = parse(sys.argv[1:] if words is None else words)
        if asked.plot_only:
            check_folder(asked.out, sweep)
            _draw(sweep, asked.out)
            return
        limit = Slice(minutes=asked.slice_minutes, begun=limit_begun)
        try:
            left = run_sweep(sweep, asked.out, asked.ranks, limit, asked.cell)
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"error: `{' '.join(error.cmd)}` failed with exit code {error.returncode} (its own "
                "message is above): fix the cause; the same command goes on from here"
            )
        if asked.cell is None:  # the tasks of an array would all write one picture
            _draw(sweep, asked.out)
        _say_left(left, _rows(asked.out, sweep), len(cells(sweep)))


def _draw(sweep: Sweep, out: Path) -> None:
    rows = _rows(out, sweep)
    if rows:
        print(f"\n{table(sweep, rows)}\n")
    print(f"drawn: {', '.join(map(str, write_picture(out, sweep, rows)))}")


if __name__ == "__main__":
    main()
