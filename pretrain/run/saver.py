"""Saving: a step waits only for a copy of the state in host memory; writing goes on behind it.

One save at a time, in two rounds. Each rank's thread writes and hashes its own file; then the main
rank's thread writes `state.json`, which names them all, and gives the folder its name. What ends a
round is agreed by all ranks at a step's end, on the main thread: no thread communicates, and no
rank has to see another's files. A kill at any instant leaves the checkpoint before.

A save that fails on any rank is named in one line and what it wrote is removed; the one before it
stands, and the next save that is due is the retry. After three failures in a row, or where nothing
comes after (a stage's end, leaving), the run stops with one line.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pretrain.base.distributed import Runtime, all_ranks, sum_over_ranks
from pretrain.base.faults import StoppedError
from pretrain.base.files import rename_durably, why_not_written, write_durably, write_tensors
from pretrain.engine.result import TrainingEngine
from pretrain.recipe.run_options import CheckpointOptions
from pretrain.run.checkpoint import ASIDE, REPLACED, remove_old
from pretrain.run.metrics import RunLog
from pretrain.run.record import STATE_FILE, CheckpointRecord, FileSum, RunState, file_sum

MOST_FAILURES = 3  # in a row


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What one rank's thread did in a round."""

    files: dict[str, FileSum]
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class _Save:
    """A save under way, in its first round or its second."""

    state: RunState
    fixed: dict[str, Any]
    begin: float  # of the writing
    written: "Future[_Written]"
    files: dict[str, FileSum] | None = None  # of all ranks, from the second round on


class Saver:
    """Writes the checkpoints of a run, and says when they are due. All ranks call it alike."""

    def __init__(
        self, folder: Path, options: CheckpointOptions, runtime: Runtime, log: RunLog
    ) -> None:
        self._folder, self._options, self._runtime, self._log = folder, options, runtime, log
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._save: _Save | None = None
        self._failures, self._failure = 0, ""
        self._last = time.monotonic()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the save under way end, where all ranks leave together."""
        if kind is None or issubclass(kind, StoppedError):
            self.wait()

    def due(self, stage_step: int) -> bool:
        """Whether to save after this step; also brings a save under way forward, without waiting.

        StoppedError after too many failures. Collective, but free where nothing is under way and
        every_minutes is not set.
        """
        every, minutes = self._options.every_steps, self._options.every_minutes
        by_steps = every is not None and stage_step % every == 0
        if self._save is None and minutes is None:
            return by_steps
        elapsed = time.monotonic() - self._last
        by_time = self._runtime.is_main and minutes is not None and elapsed >= 60 * minutes
        writing = self._save is not None and not self._save.written.done()
        votes = torch.tensor([writing, by_time], dtype=torch.int32, device=self._runtime.device)
        still_writing, asked = sum_over_ranks(votes).tolist()
        if self._save is not None and not still_writing:
            self._end_round(self._save)
            self._check_failures()
        return by_steps or asked > 0

    def save(self, engine: TrainingEngine | None, state: RunState, fixed: dict[str, Any]) -> None:
        """Copy the state, and begin to write folder/step-N in the background.

        engine None at a stage's end. Waits for the save under way first. Collective.
        """
        begin = time.perf_counter()
        self.wait()
        self._check_failures()
        copying = time.perf_counter()
        share = {} if engine is None else engine.training_state()
        now = time.perf_counter()
        self._log.event(
            "checkpoint",
            step=state.step,
            samples_seen=state.samples_seen,
            wait_s=now - begin,
            copy_s=now - copying,
        )
        aside = self._folder / (state.tag + ASIDE)
        rank, world = self._runtime.rank, self._runtime.world_size
        name = f"state-{rank:05d}-of-{world:05d}.safetensors"
        self._save = _Save(
            state=state,
            fixed=fixed,
            begin=now,
            written=self._start(lambda: _write_share(aside, name, share)),
        )
        self._last = time.monotonic()

    def wait(self) -> None:
        """Wait for the save under way, if any, whole or failed. Collective."""
        while self._save is not None:
            wait([self._save.written])
            self._end_round(self._save)

    def finish(self) -> None:
        """Wait for the save under way; StoppedError on all ranks if it failed. Collective."""
        self.wait()
        if self._failures:
            raise self._stopped("")

    def _start(self, write: Callable[[], dict[str, FileSum]]) -> "Future[_Written]":
        def attempt() -> _Written:
            try:
                return _Written(files=write(), failure=None)
            except OSError as error:
                return _Written(files={}, failure=why_not_written(error, self._folder))

        return self._thread.submit(attempt)

    def _end_round(self, save: _Save) -> None:
        """Go on from a round whose threads have ended on all ranks. Collective."""
        self._save = None
        of_rank = all_ranks(save.written.result())
        failures = [one.failure for one in of_rank if one.failure is not None]
        if failures:
            self._fail(save, failures[0])
        elif save.files is None:
            files = {name: its for one in of_rank for name, its in one.files.items()}
            self._save = _Save(
                state=save.state,
                fixed=save.fixed,
                begin=save.begin,
                files=files,
                written=self._start(lambda: self._complete(save, files)),
            )
        else:
            self._failures = 0
            self._log.event(
                "checkpoint_written",
                step=save.state.step,
                samples_seen=save.state.samples_seen,
                write_s=time.perf_counter() - save.begin,
                bytes=sum(its.bytes for its in save.files.values()),
            )

    def _complete(self, save: _Save, files: dict[str, FileSum]) -> dict[str, FileSum]:
        """The second round: the main rank makes the whole of the files."""
        if not self._runtime.is_main:
            return {}
        self._log.sync()  # a resume does not write again what was logged before
        final = self._folder / save.state.tag
        aside = final.with_name(final.name + ASIDE)
        record = CheckpointRecord(state=save.state, fixed=save.fixed, files=files)
        write_durably(aside / STATE_FILE, record.to_json())
        replaced = final.with_name(final.name + REPLACED)
        if final.exists():  # a stage's last step was saved, and now its end is
            rename_durably(final, replaced)
        rename_durably(aside, final)
        shutil.rmtree(replaced, ignore_errors=True)
        keep, keep_every = self._options.keep, self._options.keep_every_steps
        remove_old(self._folder, keep=keep, keep_every_steps=keep_every)
        return {}

    def _fail(self, save: _Save, failure: str) -> None:
        final = self._folder / save.state.tag
        self._failures += 1
        self._failure = f"checkpoint {final} could not be written: {failure}"
        if self._runtime.is_main:
            shutil.rmtree(final.with_name(final.name + ASIDE), ignore_errors=True)
        self._log.event(
            "checkpoint_failed",
            step=save.state.step,
            samples_seen=save.state.samples_seen,
            reason=failure,
            in_a_row=self._failures,
        )
        if self._failures < MOST_FAILURES:
            self._log.say(
                f"{self._failure} ({self._failures} of {MOST_FAILURES} failures in a row that stop "
                "the run). The one before it stands, and the next one due is the retry"
            )

    def _check_failures(self) -> None:
        if self._failures >= MOST_FAILURES:
            raise self._stopped(f", {self._failures} times in a row")

    def _stopped(self, times: str) -> StoppedError:
        return StoppedError(
            f"{self._failure}{times}. The one before it stands: make room, then give the same "
            "command again"
        )


def _write_share(aside: Path, name: str, share: dict[str, Tensor]) -> dict[str, FileSum]:
    """This rank's file, synced; none where the state holds no tensors."""
    aside.mkdir(parents=True, exist_ok=True)
    if not share:
        return {}
    write_tensors(aside / name, share)
    return {name: file_sum(aside / name)}
