"""What goes wrong in a run without ending it: counted, named, and bounded.

Updates that were not made because a number was not finite; samples that could not be used and were
replaced; a loss far above what it has been lately, which is named alone: nothing is rolled back.
"""

import math
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import median

from pretrain.base.decimals import exact
from pretrain.base.faults import StoppedError
from pretrain.batches.options import FailureOptions
from pretrain.engine.result import StepResult
from pretrain.recipe.run_options import SpikeOptions
from pretrain.recipe.stages import Stage
from pretrain.run.job import Job
from pretrain.run.meter import RankReading
from pretrain.run.record import RunState

_JUDGED_SAMPLES = 10_000  # fewer say too little of a share: one bad sample in 100 is 1 %


class SpikeWatch:
    """The losses of one stage."""

    def __init__(self, options: SpikeOptions | None) -> None:
        self._options = options
        self._losses: deque[float] = deque(maxlen=1 if options is None else options.window_logs)
        self._high = 0

    def see(self, loss: float) -> float | None:
        """The running median at the moment when losses above it make a spike: once a spike."""
        options = self._options
        if options is None or not math.isfinite(loss):
            return None
        usual = median(self._losses) if len(self._losses) == options.window_logs else math.inf
        self._high = self._high + 1 if loss > options.factor * usual else 0
        self._losses.append(loss)
        return usual if self._high == options.logs_in_a_row else None


def count_skip(job: Job, stage: Stage, state: RunState, result: StepResult) -> RunState:
    """The state with a skipped update counted, before its step is; unchanged after a made one."""
    if result.skipped is None:
        return state if state.skipped_in_a_row == 0 else replace(state, skipped_in_a_row=0)
    state = replace(state, skipped=state.skipped + 1, skipped_in_a_row=state.skipped_in_a_row + 1)
    first = state.samples_seen
    samples = f"{first}…{first + stage.options.global_batch_samples - 1}"
    job.log.event(
        "skipped_update",
        stage=stage.name,
        step=state.step + 1,
        samples_seen=state.samples_seen + stage.options.global_batch_samples,
        reason=result.skipped,
        loss=result.loss,
        in_a_row=state.skipped_in_a_row,
    )
    job.log.say(
        f"stage {stage.name} step {state.stage_step + 1} updated nothing: {result.skipped} on some "
        f"rank (samples {samples} of the stream; {state.skipped} skipped so far)"
    )
    most = job.recipe.engine.max_skipped_in_a_row
    if state.skipped_in_a_row > most:
        raise StoppedError(
            f"{state.skipped_in_a_row} updates in a row could not be made ({result.skipped}), "
            f"engine.max_skipped_in_a_row={most} allowed: resume from the last checkpoint with "
            f"engine.max_skipped_in_a_row raised, or start another run_dir with a lower "
            f"stages.{stage.name}.base_learning_rate, a longer warmup or optimizer.gradient_clip"
        )
    return state


def fault_at_end(job: Job, stage: Stage, state: RunState) -> str | None:
    """What is wrong where a stage ends on updates that were not made: what it has trained is not
    what it would be taken for. None where nothing is."""
    most = job.recipe.engine.max_skipped_at_end
    if state.skipped_in_a_row <= most:
        return None
    return (
        f"stage {stage.name} ends on {state.skipped_in_a_row} skipped updates in a row, "
        f"engine.max_skipped_at_end={most} allowed: it stands in a checkpoint, its weights are no "
        f"stage's. Start another run_dir with a lower stages.{stage.name}.base_learning_rate, a "
        "longer warmup or optimizer.gradient_clip; or, to keep what it has, resume with "
        "engine.max_skipped_at_end raised"
    )


def count_replaced(job: Job, state: RunState, of_ranks: list[RankReading]) -> RunState:
    """Add up what all ranks had to replace since the last time; too much stops all."""
    total = dict(state.replaced)
    for of_rank in of_ranks:
        for reason, count in of_rank.replaced.items():
            total[reason] = total.get(reason, 0) + count
        for reason, fault in of_rank.replaced_first.items():
            job.log.say_once(
                f"replaced {reason}",
                f"{fault}: replaced by another, as all that are unusable (counted in "
                "metrics.jsonl)",
            )
    in_a_row = max(of_rank.replaced_in_a_row for of_rank in of_ranks)
    check_failures(
        total, state.samples_seen, in_a_row, job.recipe.data.failures, job.dataset.directory
    )
    return replace(state, replaced=total)


def check_failures(
    replaced: dict[str, int],
    samples: int,
    in_a_row: int,
    options: FailureOptions,
    dataset_directory: Path,
) -> None:
    """StoppedError where too many of the samples read so far were unusable.

    replaced: unusable samples by reason, samples: those that batches were to hold; both summed over
    all ranks since the start, so that all stop at the same step. in_a_row: the most of any rank.
    """
    if in_a_row > options.max_in_a_row:
        raise StoppedError(
            f"{in_a_row:,} samples in a row were unusable and replaced, "
            f"data.failures.max_in_a_row={options.max_in_a_row} allows {options.max_in_a_row:,}: "
            f"repair {dataset_directory}, or raise data.failures.max_in_a_row"
        )
    bad = sum(replaced.values())
    if samples < _JUDGED_SAMPLES or bad <= exact(options.max_share) * samples:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(replaced.items()))
    raise StoppedError(
        f"{bad:,} of {samples:,} samples ({bad / samples:.2%}) were unusable and replaced "
        f"({reasons}), data.failures.max_share={options.max_share} allows "
        f"{options.max_share:.2%}: repair {dataset_directory}, or raise data.failures.max_share"
    )
