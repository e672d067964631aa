"""What a stage writes into the run's log: its start, and its steps with their times."""

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from pretrain.plan.flops import flops_per_sample
from pretrain.recipe import image_tokens
from pretrain.run import metrics
from pretrain.run.checkpoint import RunState
from pretrain.run.job import Job
from pretrain.stages import Stage

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine, StepResult


class Meter:
    """Times of the steps since the last reading."""

    def __init__(self, global_batch_samples: int) -> None:
        self.batch = global_batch_samples
        self.readings = 0
        self.replaced: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        """Forget the time since the last reading: it was spent on something else."""
        self.steps, self.wait, self.begin = 0, 0.0, time.perf_counter()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    def stepped(self, replaced: dict[str, int]) -> None:
        self.steps += 1
        for reason, count in replaced.items():
            self.replaced[reason] = self.replaced.get(reason, 0) + count

    def read_replaced(self) -> dict[str, int]:
        """This rank's unusable samples by reason since the last such reading."""
        replaced, self.replaced = self.replaced, {}
        return replaced

    def read(self) -> dict[str, float]:
        """images_per_s of all ranks, step_s and data_wait_s per step; starts anew."""
        self.readings += 1
        steps = max(self.steps, 1)
        seconds = time.perf_counter() - self.begin
        values = {
            "images_per_s": self.batch * steps / seconds,
            "step_s": seconds / steps,
            "data_wait_s": self.wait / steps,
        }
        self.restart()
        return values


def log_start(job: Job, stage: Stage, state: RunState, engine: "Engine") -> None:
    """Who trains, with what, and from where: the first lines of every start and stage."""
    if not job.log.is_main:
        return
    module: Any = engine.engine.module
    options, tokens = stage.options, stage.options.tokens
    kept, full = image_tokens(job.recipe, options)
    parameters = {
        tower: sum(p.numel() for p in getattr(module, tower).parameters())
        for tower in ("image", "text")
    }
    job.log.event(
        "start",
        samples_seen=state.samples_seen,
        commit=metrics.code_commit(),
        world_size=job.runtime.world_size,
        device=str(job.runtime.device.type),
        precision=job.precision,
        zero_stage=engine.zero_stage,
        parameters=parameters,
        versions={"torch": torch.__version__},
    )
    if state.stage_step == 0:
        job.log.event(
            "stage",
            stage=stage.name,
            samples_seen=state.samples_seen,
            step=state.step,
            image_tokens=kept,
            image_tokens_full=full,
            global_batch_samples=options.global_batch_samples,
            steps=stage.steps,
            image_px=tokens.image_px,
            text_tokens=tokens.text_tokens,
        )
    job.log.say_once(
        "bar",
        "the bar: loss; acc, the share of a batch's pictures whose own caption scores highest; "
        "wait, the share of the time spent waiting for data",
    )
    job.log.say(
        f"stage {stage.name}, step {state.stage_step} of {stage.steps}: {tokens.image_px} px "
        f"({kept} image tokens), {tokens.text_tokens} text tokens, batch "
        f"{options.global_batch_samples} on {job.runtime.world_size} rank(s), {job.precision}, "
        f"ZeRO {engine.zero_stage}"
    )


def log_step(
    job: Job,
    stage: Stage,
    state: RunState,
    engine: "Engine",
    result: "StepResult",
    rate: float,
    timing: dict[str, float],
) -> None:
    """One line of metrics.jsonl for a step, and the progress bar."""
    job.log.event(
        "step",
        stage=stage.name,
        step=state.step,
        samples_seen=state.samples_seen,
        learning_rate=rate,
        loss=result.loss,
        grad_norm=result.grad_norm,
        **engine.objective.figures(),
        **result.measures,
        **timing,
        samples_replaced=state.replaced,
        updates_skipped=state.skipped,
    )
    job.log.progress(
        state.samples_seen,
        loss=f"{result.loss:.3f}",
        acc=f"{next(iter(result.measures.values()), math.nan):.0%}",
        wait=f"{timing['data_wait_s'] / timing['step_s']:.0%}",
    )


def log_spike(job: Job, stage: Stage, state: RunState, loss: float, usual: float) -> None:
    """A spike of the loss, with the samples since its first high loss."""
    options, batch = job.recipe.log, stage.options.global_batch_samples
    logs = options.spikes.logs_in_a_row if options.spikes is not None else 1
    last = state.samples_seen - 1
    first = max(stage.first_sample, last + 1 - logs * options.every_steps * batch)
    job.log.event(
        "loss_spike",
        stage=stage.name,
        step=state.step,
        samples_seen=state.samples_seen,
        loss=loss,
        median=usual,
        first_sample=first,
        last_sample=last,
    )
    job.log.say(
        f"stage {stage.name} step {state.stage_step}: the loss is {loss:.3f} where {usual:.3f} was "
        f"usual, {logs} logged steps in a row (samples {first}…{last} of the stream)"
    )


def say_forecast(job: Job, stage: Stage, state: RunState, step_s: float) -> None:
    """How long the rest will take, once, judged by the first steps; stages to come by their FLOPs,
    evaluations and checkpoints left out."""
    here = flops_per_sample(job.recipe, stage.options)
    second_per_flop = step_s / (here * stage.options.global_batch_samples)
    left = (stage.steps - state.stage_step) * step_s
    place = job.stages.index(stage)
    for later in job.stages[place + 1 :]:
        left += later.samples * flops_per_sample(job.recipe, later.options) * second_per_flop
    job.log.say_once(
        "forecast", f"about {_duration(left)} of training to go, judged by the first steps"
    )


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
