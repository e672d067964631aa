"""The training loop: the recipe's stages in order, as one job that any restart continues."""

import time
from dataclasses import replace
from typing import NoReturn

import torch

from pretrain.base import distributed, progress
from pretrain.base.distributed import Runtime, broadcast_object, run_together
from pretrain.base.exit_codes import CONTINUE
from pretrain.base.faults import StoppedError, ended_at_once, leave, one_line_faults
from pretrain.base.run_files import AVERAGED
from pretrain.batches.augment import Pictures
from pretrain.batches.collate import Collator
from pretrain.batches.feed import DeviceBatch, feed
from pretrain.batches.loader import batches
from pretrain.engine.result import StepResult, TrainingEngine
from pretrain.losses.build import add_classifier, build_objective
from pretrain.models.build import build_model
from pretrain.models.in_open_clip import inexpressible
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import Stage
from pretrain.run import checkpoint
from pretrain.run.continuation import list_fixed
from pretrain.run.health import SpikeWatch, count_replaced, count_skip, fault_at_end
from pretrain.run.job import Job
from pretrain.run.meter import Meter, workload
from pretrain.run.record import RunState
from pretrain.run.signals import Signals
from pretrain.run.stage_evaluation import evaluate_stage
from pretrain.run.stage_log import log_spike, log_start, log_step, say_forecast, say_shortfalls
from pretrain.run.stage_weights import load_stage_weights, load_start_weights, save_stage_weights
from pretrain.run.start import start_run
from pretrain.run.watchdog import watch


def main(recipe: Recipe, resolved: str) -> None:
    """Train as one of the ranks that a launcher started, or alone."""
    signals = Signals()
    runtime = distributed.start()
    with ended_at_once():
        train(recipe, resolved, runtime, signals)
    distributed.stop()


def train(recipe: Recipe, resolved: str, runtime: Runtime, signals: Signals) -> None:
    """Run, or go on with, every stage of a recipe. Collective."""
    with one_line_faults(known_to_all=True):
        job, state, tag, lock = start_run(recipe, resolved, runtime)
    watch(recipe.watchdog, recipe.run_dir, runtime.rank)
    if runtime.is_main:
        job.log.say(job.expectation.line())
        if missing := inexpressible(recipe.model):
            job.log.say(
                f"note: the export will open in transformers, not in open_clip, which has no "
                f"counterpart of {', '.join(missing)}"
            )
    with job.saver:
        for index in range(state.stage, len(job.stages)):
            state = run_stage(job, index, state, tag, signals)
            tag = None
    job.profile.close()
    job.log.event("end", samples_seen=state.samples_seen)
    job.log.say(f"finished: {state.samples_seen:,} samples in {recipe.run_dir}")
    job.log.close()
    if lock is not None:
        lock.release()


def run_stage(job: Job, index: int, state: RunState, tag: str | None, signals: Signals) -> RunState:
    """Train stage `index` from where `state` stands to its end; returns the state after it."""
    recipe, runtime, stage = job.recipe, job.runtime, job.stages[index]
    progress.doing(f"building stage {stage.name}")
    engine = _start_engine(job, index, state)
    if state.stage_step > 0 and tag is not None:
        checkpoint.load(engine, job.checkpoints, tag, late_files_s=recipe.checkpoint.late_files_s)
    log_start(job, stage, state, engine)

    batch_samples = stage.options.global_batch_samples
    device, ranks = runtime.device, runtime.world_size
    built = batches(
        collator=_collator(job, stage),
        order=job.order,
        start=state.samples_seen,
        end=stage.first_sample + stage.samples,
        global_batch_samples=batch_samples,
        rank=runtime.rank,
        world_size=ranks,
        options=recipe.data.loader,
        device=device,
    )
    stream = feed(built, device)
    vocab_size = job.dataset.vocabulary.size
    work = workload(recipe, stage, vocab_size, precision=job.precision, ranks=ranks, device=device)
    meter = Meter(work, device)
    spikes = SpikeWatch(recipe.log.spikes)
    signals.training()
    while state.stage_step < stage.steps:
        job.profile.reach(state.step + 1)
        progress.doing(f"waiting for the batch of step {state.step + 1}")
        waiting = time.perf_counter()
        batch = next(stream)
        meter.waited(time.perf_counter() - waiting)

        progress.doing(f"in step {state.step + 1}")
        is_last = state.stage_step + 1 == stage.steps
        logs = is_last or _due(recipe.log.every_steps, state.stage_step + 1)
        asked = signals.asked is not None
        result, rate = _train_step(
            job, engine, stage, batch, state.stage_step, stop=asked, measure=logs
        )
        meter.stepped(batch.host)
        state = replace(
            count_skip(job, stage, state, result),
            stage_step=state.stage_step + 1,
            step=state.step + 1,
            samples_seen=state.samples_seen + batch_samples,
        )
        if (step_s := meter.third_step_s()) is not None:
            say_forecast(job, stage, state, step_s)
        due = job.saver.due(state.stage_step) and not is_last
        saves = due or result.stop
        if saves or logs:
            of_ranks = distributed.all_ranks(meter.of_this_rank(result.ready_s))
            state = count_replaced(job, state, of_ranks)
        if logs:
            reading = meter.read(of_ranks)
            log_step(job, stage, state, engine, result, rate, reading)
            if (usual := spikes.see(result.loss)) is not None:
                log_spike(job, stage, state, result.loss, usual)
            if meter.readings > 1:  # the first holds what happens once
                say_shortfalls(job, stage, reading)
        if _due(recipe.evaluation.every_steps, state.stage_step) and not is_last:
            _evaluate(job, stage, state, engine)
            meter.restart()
        if saves:
            _save(job, engine, state)
            meter.restart()
        if result.stop:
            _stop(job, state, signals)
    if (fault := fault_at_end(job, stage, state)) is not None:
        _save(job, engine, state)
        job.saver.finish()
        raise StoppedError(fault)
    state = _finish_stage(job, index, state, engine)
    engine.close()
    asked = any(distributed.all_ranks(signals.asked is not None))
    if asked and state.stage < len(job.stages):
        _stop(job, state, signals)
    return state


def _start_engine(job: Job, index: int, state: RunState) -> TrainingEngine:
    """The stage's engine: the recipe's weights in the first stage, else those of the stage before.

    A stage that goes on takes all of them from its checkpoint.
    """
    from pretrain.engine.engine import Engine  # imports DeepSpeed

    recipe, runtime, stage = job.recipe, job.runtime, job.stages[index].options
    torch.manual_seed(recipe.seed + index)
    model = build_model(
        recipe.model,
        tokens=stage.tokens,
        vocabulary=job.dataset.vocabulary,
        device=runtime.device,
    )
    objective = build_objective(recipe.loss)
    if state.stage_step == 0 and index == 0:
        load_start_weights(recipe.start, model, objective)
    add_classifier(recipe.loss, model, job.dataset, job.recaptions)
    if state.stage_step == 0 and index > 0:
        before = job.stages[index - 1].name
        load_stage_weights(
            *(recipe.run_dir, before, state.stage_weights[before], model, objective),
            late_files_s=recipe.checkpoint.late_files_s,
        )
    return Engine(
        model=model,
        objective=objective,
        runtime=runtime,
        options=recipe.engine,
        optimizer=recipe.optimizer,
        precision=job.precision,
        local_batch_samples=stage.global_batch_samples // runtime.world_size,
        micro_batch_samples=stage.micro_batch_samples,
        layer_decay=stage.layer_decay,
        locked=stage.locked,
        fixed_positions=stage.fixed_positions,
    )


def _collator(job: Job, stage: Stage) -> Collator:
    data = job.recipe.data
    return Collator(
        dataset=job.pictures(stage),
        tokens=stage.options.tokens,
        patch_px=job.recipe.model.image.patch_px,
        specials=job.recipe.model.text.specials,
        crop=stage.options.crop,
        caption_weights=data.caption_weights,
        weights=job.weights,
        recaptions=job.recaptions,
        seed=job.recipe.seed,
    )


def _train_step(
    job: Job,
    engine: TrainingEngine,
    stage: Stage,
    batch: DeviceBatch,
    step: int,
    *,
    stop: bool,
    measure: bool,
) -> tuple[StepResult, float]:
    """One optimizer step on a batch; returns what it measured and its learning rate."""
    images = Pictures(
        images=batch.images,
        draws=batch.augment,
        options=stage.options.augment,
        normalisation=job.recipe.data.normalisation,
        dtype=engine.dtype,
    )
    share = stage.schedule(step)
    rate = share * stage.peak()
    result = engine.step(
        images,
        batch.text_ids,
        batch.keep_index,
        learning_rate=rate,
        objective_learning_rate=share * stage.peak(job.recipe.temperature_base_learning_rate),
        stop=stop,
        measure=measure,
    )
    return result, rate


def _evaluate(job: Job, stage: Stage, state: RunState, engine: TrainingEngine) -> None:
    if job.evaluator.judges(final=False):
        weights, averaged = engine.full_weights(), engine.averaged_weights()
        evaluate_stage(job, stage.name, state, weights, averaged, [stage.name])


def _finish_stage(job: Job, index: int, state: RunState, engine: TrainingEngine) -> RunState:
    """Weights, evaluation at every stage's token lengths, and the checkpoint that ends a stage."""
    name = job.stages[index].name
    weights, averaged = engine.full_weights(), engine.averaged_weights()
    saved = {name: weights} | ({} if averaged is None else {name + AVERAGED: averaged})
    written = broadcast_object(
        run_together(
            lambda: (
                {
                    file: save_stage_weights(job.recipe.run_dir, file, its, engine.objective)
                    for file, its in saved.items()
                }
                if job.runtime.is_main
                else None
            )
        )
    )
    state = replace(state, stage_weights={**state.stage_weights, **written})
    evaluate_stage(job, name, state, weights, averaged, list(job.recipe.stages), final=True)
    if state.replaced:
        job.log.say(f"replaced so far as unusable: {state.replaced} of {state.samples_seen:,}")
    state = replace(state, stage=index + 1, stage_step=0, skipped_in_a_row=0)
    _save(job, None, state)
    job.saver.finish()
    return state


def _stop(job: Job, state: RunState, signals: Signals) -> NoReturn:
    """The end of a run that was asked to stop, after its checkpoint. On all ranks together."""
    job.saver.finish()
    job.profile.close()
    asked = next(name for name in distributed.all_ranks(signals.asked) if name is not None)
    job.log.event("stop", step=state.step, samples_seen=state.samples_seen, signal=asked)
    job.log.say(
        f"stopped by {asked} after step {state.step}, saved: the same command goes on from there"
    )
    job.log.close()
    leave(CONTINUE)


def _save(job: Job, engine: TrainingEngine | None, state: RunState) -> None:
    progress.doing(f"saving the checkpoint of step {state.step}")
    fixed = list_fixed(job.recipe, job.stages[: state.begun], job.precision)
    job.saver.save(engine, replace(state, log_lines=job.log.lines), fixed)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
