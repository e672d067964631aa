"""The training loop: the recipe's stages in order, as one job that any restart continues.

torchrun --nproc_per_node 8 -m pretrain.train --config pretrain/recipes/demo.yaml
"""

import time
from dataclasses import replace
from typing import Any

import torch

from pretrain import distributed
from pretrain.data.augment import prepare
from pretrain.data.collate import Batch, Collator
from pretrain.data.dataset import Dataset
from pretrain.data.loader import batches
from pretrain.data.order import SampleOrder
from pretrain.distributed import Runtime
from pretrain.engine.engine import Engine, StepResult
from pretrain.engine.precision import resolve_precision
from pretrain.engine.schedule import learning_rate
from pretrain.evaluation.evaluator import Evaluator
from pretrain.losses.build import build_objective
from pretrain.models.build import build_model
from pretrain.recipe import Recipe, StageOptions, check_ranks, fingerprint, parse
from pretrain.run import checkpoint, metrics
from pretrain.run.checkpoint import RunState
from pretrain.run.job import Job
from pretrain.run.metrics import RunLog
from pretrain.run.stage_evaluation import evaluate_stage
from pretrain.run.stage_log import Meter, log_start, log_step
from pretrain.run.weights import load_stage_weights, save_stage_weights


def main(arguments: list[str] | None = None) -> None:
    recipe, resolved = parse(arguments)
    runtime = distributed.start()
    try:
        train(recipe, resolved, runtime)
    finally:
        distributed.stop()


def train(recipe: Recipe, resolved: str, runtime: Runtime) -> None:
    """Run, or go on with, every stage of a recipe. Collective."""
    # Everything that can be wrong with the configuration raises here, before any collective.
    check_ranks(recipe, runtime.world_size)
    dataset = Dataset(recipe.data.train, recipe.data.tier)
    evaluator = Evaluator(
        recipe.evaluation,
        tier=recipe.data.tier,
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
    )
    fresh = RunState(
        stage=0,
        stage_step=0,
        step=0,
        samples_seen=0,
        world_size=runtime.world_size,
        zero_stage=0,
        recipe_sha256=fingerprint(recipe),
        dataset_fingerprint=dataset.fingerprint,
    )
    folder = recipe.run_dir / "checkpoints"
    if runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest(folder, runtime)
    state = fresh if found is None else found[1]
    _check_same_run(recipe, fresh, state)
    if runtime.is_main:
        (recipe.run_dir / "recipe.yaml").write_text(resolved, encoding="utf-8")
        metrics.truncate(recipe.run_dir, state.samples_seen)
    log = RunLog(
        recipe.run_dir,
        is_main=runtime.is_main,
        tensorboard=recipe.log.tensorboard,
        samples=recipe.samples,
        samples_seen=state.samples_seen,
    )
    job = Job(
        recipe=recipe,
        runtime=runtime,
        precision=resolve_precision(recipe.engine.precision, runtime.device),
        dataset=dataset,
        evaluator=evaluator,
        log=log,
    )
    tag = None if found is None else found[0]
    for index in range(state.stage, len(recipe.stages)):
        state = run_stage(job, index, state, tag)
        tag = None
    log.event("end", samples_seen=state.samples_seen)
    log.say(f"finished: {state.samples_seen:,} samples in {recipe.run_dir}")
    log.close()


def _check_same_run(recipe: Recipe, asked: RunState, found: RunState) -> None:
    """ValueError where a run folder's checkpoint cannot be continued by what is asked now."""
    if found.recipe_sha256 != asked.recipe_sha256:
        raise ValueError(
            f"run_dir={recipe.run_dir} holds a run with other options (its recipe.yaml shows "
            "them): give the same recipe to resume it, or another run_dir to start anew"
        )
    if found.dataset_fingerprint != asked.dataset_fingerprint:
        raise ValueError(
            f"run_dir={recipe.run_dir} was trained on another dataset than {recipe.data.train} "
            "is now: put that one back, or choose another run_dir"
        )
    if found.world_size != asked.world_size and found.zero_stage > 0 and found.stage_step > 0:
        raise ValueError(
            f"run_dir={recipe.run_dir} has a ZeRO-{found.zero_stage} checkpoint of "
            f"{found.world_size} ranks, {asked.world_size} are running: start as many ranks "
            "(another number is possible only between stages, so far)"
        )


def run_stage(job: Job, index: int, state: RunState, tag: str | None) -> RunState:
    """Train stage `index` from where `state` stands to its end; returns the state after it."""
    recipe, runtime = job.recipe, job.runtime
    name, stage = list(recipe.stages.items())[index]
    engine = _start_engine(job, index, stage)
    if state.stage_step > 0 and tag is not None:
        engine.load(job.checkpoints, tag)
    log_start(job, name, stage, state, engine)

    first = sum(s.samples for s in list(recipe.stages.values())[:index])
    stream = batches(
        collator=_collator(job, stage),
        order=SampleOrder(samples=len(job.dataset), seed=recipe.seed),
        start=state.samples_seen,
        end=first + stage.samples,
        global_batch_samples=stage.global_batch_samples,
        rank=runtime.rank,
        world_size=runtime.world_size,
        options=recipe.data.loader,
    )
    meter = Meter(stage.global_batch_samples)
    while state.stage_step < stage.steps:
        waiting = time.perf_counter()
        batch = next(stream)
        meter.waited(time.perf_counter() - waiting)

        result, rate = _train_step(job, engine, stage, batch, state.stage_step)
        state = replace(
            state,
            stage_step=state.stage_step + 1,
            step=state.step + 1,
            samples_seen=state.samples_seen + stage.global_batch_samples,
            zero_stage=engine.zero_stage,
            world_size=runtime.world_size,
        )
        meter.stepped(batch["replaced"])
        is_last = state.stage_step == stage.steps
        if state.stage_step % recipe.log.every_steps == 0 or is_last:
            log_step(job, name, state, engine, result, rate, meter.read())
        if _due(recipe.evaluation.every_steps, state.stage_step) and not is_last:
            evaluate_stage(job, name, state, engine.full_weights(), [name])
            meter.restart()
        if _due(recipe.checkpoint.every_steps, state.stage_step) and not is_last:
            _save(job, engine, state)
            meter.restart()
    state = _finish_stage(job, index, name, state, engine)
    engine.close()
    return state


def _start_engine(job: Job, index: int, stage: StageOptions) -> Engine:
    """The stage's engine: random weights in the first stage, else those of the stage before."""
    recipe, runtime = job.recipe, job.runtime
    torch.manual_seed(recipe.seed + index)
    model = build_model(
        recipe.model,
        tokens=stage.tokens,
        vocab_size=job.dataset.manifest.tokenizer.vocab_size,
        device=runtime.device,
    )
    objective = build_objective(recipe.loss)
    if index > 0:
        before = list(recipe.stages)[index - 1]
        load_stage_weights(recipe.run_dir, before, model, objective)
    return Engine(
        model=model,
        objective=objective,
        runtime=runtime,
        options=recipe.engine,
        optimizer=recipe.optimizer,
        precision=job.precision,
        local_batch_samples=stage.global_batch_samples // runtime.world_size,
        micro_batch_samples=stage.micro_batch_samples,
    )


def _collator(job: Job, stage: StageOptions) -> Collator:
    data = job.recipe.data
    dataset = job.dataset
    if stage.tier not in (None, dataset.tier):
        dataset = Dataset(data.train, stage.tier)
    return Collator(
        dataset=dataset,
        tokens=stage.tokens,
        patch_px=job.recipe.model.image.patch_px,
        specials=job.recipe.model.text.specials,
        crop=stage.crop,
        caption_weights=data.caption_weights,
        seed=job.recipe.seed,
        failures=data.failures,
    )


def _train_step(
    job: Job, engine: Engine, stage: StageOptions, batch: Batch, step: int
) -> tuple[StepResult, float]:
    """One optimizer step on a batch; returns what it measured and its learning rate."""
    device = job.runtime.device

    def put(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    images = prepare(
        put(batch["images"]),
        put(batch["augment"]),
        stage.augment,
        job.recipe.data.normalisation,
        engine.dtype,
    )
    kept = batch["keep_index"]
    schedule = learning_rate(
        step=step, steps=stage.steps, warmup_steps=stage.warmup_steps, peak=1.0
    )
    rate = schedule * stage.peak_learning_rate
    result = engine.step(
        images,
        put(batch["text_ids"]),
        None if kept is None else put(kept),
        learning_rate=rate,
        objective_learning_rate=schedule * job.recipe.temperature_learning_rate(stage),
    )
    return result, rate


def _finish_stage(job: Job, index: int, name: str, state: RunState, engine: Engine) -> RunState:
    """Weights, evaluation at every stage's token lengths, and the checkpoint that ends a stage."""
    weights = engine.full_weights()
    if job.runtime.is_main:
        save_stage_weights(job.recipe.run_dir, name, weights, engine.objective)
    distributed.barrier()
    evaluate_stage(job, name, state, weights, list(job.recipe.stages), final=True)
    state = replace(state, stage=index + 1, stage_step=0)
    _save(job, engine, state)
    return state


def _save(job: Job, engine: Engine, state: RunState) -> None:
    checkpoint.save(
        engine,
        job.checkpoints,
        state,
        keep=job.recipe.checkpoint.keep,
        runtime=job.runtime,
    )
    job.log.event("checkpoint", step=state.step, samples_seen=state.samples_seen)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


if __name__ == "__main__":
    main()
