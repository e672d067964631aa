"""Judges a run's checkpoints, each once, while another job trains.

Every result is one durable line of a file of its own. The run folder is only read: training owns
it, and may remove a checkpoint at any time, also while it is read here.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.base.distributed import Runtime, all_ranks, broadcast_object, run_together
from pretrain.base.files import sync
from pretrain.base.lock import HeldError, Lock
from pretrain.base.run_files import CHECKPOINTS, read_json
from pretrain.evaluation.table import table
from pretrain.evaluation.task import Figure
from pretrain.recipe.parsing import read_recipe, read_values
from pretrain.recipe.recipe import Recipe
from pretrain.run.checkpoint import complete, read_state, read_weights
from pretrain.run.metrics import finite
from pretrain.run.record import RunState
from pretrain.run.stage_weights import check_stage_weights, read_stage_weights
from pretrain.subject import EvaluatedModel, of_stage
from pretrain.tokens.options import TokenOptions

_BEGIN = b'{"event": "evaluation"'  # of every line
_FOREIGN = "is not a file that --watch has written: give another --out"


class Judged:
    """The file of results, one line a checkpoint, which one process at a time appends to."""

    def __init__(self, path: Path) -> None:
        """RuntimeError where another process has it, ValueError where it is another file.

        The half line of a killed one is removed.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = os.fdopen(Lock(path, patience_s=0).descriptor, "a+b")
        except HeldError as error:
            raise RuntimeError(
                f"{path} is being written by another --watch of this run: wait for it, end it, or "
                "give this one another --out"
            ) from error
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        half = content[len(whole) :]
        try:
            self.steps = {int(read_json(line)["step"]) for line in whole.decode().splitlines()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} {_FOREIGN}") from error
        if half[: len(_BEGIN)] != _BEGIN[: len(half)]:
            raise ValueError(f"{path} {_FOREIGN}")
        self._file.truncate(len(whole))
        sync(path.parent)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.write((json.dumps(finite(record), allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.steps.add(int(record["step"]))


def watch(
    run_dir: Path,
    out: Path,
    judge: Callable[[EvaluatedModel], tuple[TokenOptions, list[Figure]]],
    *,
    poll_s: float,
    runtime: Runtime,
) -> None:
    """Judge every checkpoint of a run that is found, the newest first, until the run has ended.

    judge: gives the lengths it judged at, and the figures; collective. poll_s: between two looks
    at the folder. A checkpoint that stays unreadable for the recipe's checkpoint.late_files_s is
    named and left out. StoppedError where another process writes `out`. Collective.
    """
    judged = run_together(lambda: Judged(out) if runtime.is_main else None)
    if judged is not None:
        print(
            f"watching {run_dir} every {poll_s:g} s; judged already: {len(judged.steps)} "
            f"checkpoint(s) in {out}",
            flush=True,
        )
    unreadable = _Unreadable(is_main=runtime.is_main)
    while True:
        path, ended = broadcast_object(
            (None, False) if judged is None else _next(run_dir, judged.steps, unreadable.left_out)
        )
        if path is None and ended:
            break
        if path is None:
            time.sleep(poll_s)
            continue
        recipe = read_recipe(run_dir)
        read, failure = _read(run_dir, recipe, path)
        failures = [one for one in all_ranks(failure) if one is not None]
        if read is None or failures:
            if broadcast_object(unreadable.stays(path, failures[0], recipe)):
                time.sleep(poll_s)
            continue
        state, stage, weights = read
        lengths, figures = judge(of_stage(recipe, stage, weights))
        if judged is not None:
            judged.add(_record(recipe, state, stage, lengths, figures))
            print(
                f"{stage}, step {state.step}, {state.samples_seen:,} samples, at "
                f"{lengths.image_px} px / {lengths.text_tokens} text tokens\n{table(figures)}",
                flush=True,
            )
    if judged is not None:
        missing = sorted(unreadable.left_out)
        print(
            f"the run has ended, and all its checkpoints are judged: {len(judged.steps)} in {out}"
            + (f"; unreadable and left out: {missing}" if missing else ""),
            flush=True,
        )


class _Unreadable:
    """Checkpoints that could not be read. Only the main rank's answers count."""

    def __init__(self, *, is_main: bool) -> None:
        self._is_main = is_main
        self.left_out: set[str] = set()
        self._since: dict[str, float] = {}

    def stays(self, path: Path, why: str, recipe: Recipe) -> bool:
        """Whether to wait for it: it is there, and a network disk may still show its files. One
        that training removed is not; one that had its time is named and left out."""
        if not path.exists():
            return False
        now = time.monotonic()
        if now - self._since.setdefault(path.name, now) < recipe.checkpoint.late_files_s:
            return True
        self.left_out.add(path.name)
        if self._is_main:
            print(f"left out: {why}", flush=True)
        return False


def _next(run_dir: Path, judged: set[int], left_out: set[str]) -> tuple[Path | None, bool]:
    """(the newest checkpoint that is not judged, whether the run's last stage has ended)."""
    paths = complete(run_dir / CHECKPOINTS)
    for path in reversed(paths):
        if _step(path) not in judged and path.name not in left_out:
            return path, False
    try:
        ended = bool(paths) and read_state(paths[-1]).stage >= len(read_values(run_dir)["stages"])
    except (OSError, ValueError, RuntimeError):  # replaced at this moment
        ended = False
    return None, ended


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read(
    run_dir: Path, recipe: Recipe, path: Path
) -> tuple[tuple[RunState, str, dict[str, Tensor]] | None, str | None]:
    """((state, stage, whole fp32 weights), None), or (None, why it cannot be read now)."""
    try:
        state = read_state(path)
        if state.stage_step > 0:
            return (state, list(recipe.stages)[state.stage], read_weights(path)[0]), None
        stage = list(recipe.stages)[state.stage - 1]
        check_stage_weights(run_dir, stage, state.stage_weights[stage], late_files_s=0)
        return (state, stage, read_stage_weights(run_dir, stage)[0]), None
    except (OSError, ValueError, RuntimeError) as error:
        return None, " ".join(str(error).split())


def _record(
    recipe: Recipe, state: RunState, stage: str, lengths: TokenOptions, figures: list[Figure]
) -> dict[str, Any]:
    """A line as training's own evaluation events are."""
    at = (lengths.image_px, lengths.text_tokens)
    own = {
        name: (one.tokens.image_px, one.tokens.text_tokens) for name, one in recipe.stages.items()
    }
    named = [name for name in (stage, *own) if own[name] == at]
    return {
        "event": "evaluation",
        "time": time.time(),
        "stage": stage,
        "samples_seen": state.samples_seen,
        "step": state.step,
        "tokens": named[0] if named else f"{at[0]} px, {at[1]} text tokens",
        "image_px": lengths.image_px,
        "image_tokens": (lengths.image_px // recipe.model.image.patch_px) ** 2,
        "text_tokens": lengths.text_tokens,
        "figures": [figure.record() for figure in figures],
    }
