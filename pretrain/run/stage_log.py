"""What a stage writes into the run's log: its start, and its steps with their times."""

import math
from typing import Any

import torch

from pretrain.batches.ahead import cache_shortage
from pretrain.engine.result import StepResult, TrainingEngine
from pretrain.plan.flops import count_executed, stage_flops
from pretrain.recipe.recipe import image_tokens
from pretrain.recipe.stages import Stage
from pretrain.run import metrics
from pretrain.run.job import Job
from pretrain.run.record import RunState
from pretrain.tokens.context import special_count

_LOOKED_AT = 100_000  # samples whose captions' lengths are looked at


def log_start(job: Job, stage: Stage, state: RunState, engine: TrainingEngine) -> None:
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
        f"ZeRO {engine.zero_stage}, learning rate {stage.peak():.3g}"
    )
    if stage is job.stages[-1]:
        _say_long_captions(job, stage)
    ranks = job.runtime.world_size
    shortage = cache_shortage(
        job.pictures(stage), job.order, state.samples_seen, job.runtime.rank, ranks
    )
    if shortage is not None:
        job.log.say_once("cache", shortage)


def _say_long_captions(job: Job, stage: Stage) -> None:
    """Where the stage that is to read whole captions cuts most of them."""
    counts = job.pictures(stage).index["tokens"][:_LOOKED_AT]
    counts = counts[counts > 0]
    tokens = stage.options.tokens.text_tokens
    content = tokens - special_count(job.recipe.model.text.specials)
    longer = float((counts > content).mean())
    if longer > 0.5:
        job.log.say_once(
            "long captions",
            f"note: stage {stage.name} reads {tokens} text tokens, {longer:.0%} of the captions "
            f"are longer ({counts.mean():.0f} tokens on average): raise --stages.{stage.name}."
            "tokens.text_tokens, or build with a tokenizer of longer pieces (--tokenizer clip, "
            "--model-type bpe)",
        )


def log_step(
    job: Job,
    stage: Stage,
    state: RunState,
    engine: TrainingEngine,
    result: StepResult,
    rate: float,
    reading: dict[str, Any],
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
        **reading,
        samples_replaced=state.replaced,
        updates_skipped=state.skipped,
    )
    job.log.progress(
        state.samples_seen,
        loss=f"{result.loss:.3f}",
        acc=f"{next(iter(result.measures.values()), math.nan):.0%}",
        wait=f"{reading['data_wait_s'] / reading['step_s']:.0%}",
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
    """How long the rest will take, once, judged by the first steps; stages to come and evaluations
    by their FLOPs, checkpoints left out."""

    vocab_size = job.dataset.vocabulary.size

    def flops(of: Stage) -> float:
        return count_executed(job.recipe, of.options, job.runtime.world_size, vocab_size)

    def forward(of: Stage) -> float:
        return stage_flops(job.recipe, of.options, vocab_size).forward

    second_per_flop = step_s / (flops(stage) * stage.options.global_batch_samples)
    at_all_lengths = sum(forward(of) for of in job.stages)
    every, rows = job.recipe.evaluation.every_steps, job.evaluator.rows
    training = evaluating = 0.0
    for later in job.stages[job.stages.index(stage) :]:
        done = state.stage_step if later is stage else 0
        samples = (later.steps - done) * later.options.global_batch_samples
        training += samples * flops(later) * second_per_flop
        inside = 0 if every is None else (later.steps - 1) // every - done // every
        evaluating += rows * (inside * forward(later) + at_all_lengths) * second_per_flop
    job.log.say_once(
        "forecast",
        f"about {_duration(training + evaluating)} to go, {_duration(evaluating)} of it for "
        "evaluations, judged by the first steps"
        if rows
        else f"about {_duration(training)} to go, judged by the first steps",
    )


def say_shortfalls(job: Job, stage: Stage, reading: dict[str, Any]) -> None:
    """Where the run falls short of its plan, with the option to change: each once a stage."""
    if job.log.is_main:
        for warning in job.expectation.judge(stage, reading):
            job.log.say(f"warning: {warning}")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
