"""Updates that were not made because a number was not finite: seen, counted, logged, bounded."""

from dataclasses import replace

from pretrain.base.faults import StoppedError
from pretrain.engine.result import StepResult
from pretrain.recipe.stages import Stage
from pretrain.run.job import Job
from pretrain.run.record import RunState


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
