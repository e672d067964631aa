"""The training loop: the recipe's stages in order, as one job that any restart continues.

torchrun --nproc_per_node 8 -m pretrain.train --config pretrain/recipes/demo.yaml
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pretrain import checkpoint, distributed, run_log
from pretrain.checkpoint import RunState
from pretrain.data.augment import prepare
from pretrain.data.collate import Batch, Collator
from pretrain.data.dataset import Dataset
from pretrain.data.loader import batches
from pretrain.data.order import SampleOrder
from pretrain.distributed import Runtime
from pretrain.engine import Engine, StepResult
from pretrain.evaluation.evaluator import Evaluator
from pretrain.loss import ContrastiveLoss
from pretrain.models.build import build_model
from pretrain.optimization import learning_rate
from pretrain.recipe import Recipe, StageOptions, check_ranks, fingerprint, image_tokens, parse
from pretrain.run_log import RunLog
from pretrain.weights import load_stage_weights, save_stage_weights


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every stage of a run shares."""

    recipe: Recipe
    runtime: Runtime
    precision: Literal["bf16", "fp32"]
    dataset: Dataset  # of data.tier
    evaluator: Evaluator
    log: RunLog

    @property
    def checkpoints(self) -> Path:
        return self.recipe.run_dir / "checkpoints"


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
        run_log.truncate(recipe.run_dir, state.samples_seen)
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
        precision=distributed.resolve_precision(recipe.engine.precision, runtime.device),
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
    _log_start(job, name, stage, state, engine)

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
            _log_step(job, name, state, engine, result, rate, meter.read())
        if _due(recipe.evaluation.every_steps, state.stage_step) and not is_last:
            _evaluate(job, name, state, engine, [name])
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
    loss = ContrastiveLoss(recipe.loss)
    if index > 0:
        before = list(recipe.stages)[index - 1]
        load_stage_weights(recipe.run_dir, before, model, loss)
    return Engine(
        model=model,
        loss=loss,
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
        temperature_learning_rate=schedule * job.recipe.temperature_learning_rate(stage),
    )
    return result, rate


def _finish_stage(job: Job, index: int, name: str, state: RunState, engine: Engine) -> RunState:
    """Weights, evaluation at every stage's token lengths, and the checkpoint that ends a stage."""
    weights = engine.full_weights()
    if job.runtime.is_main:
        save_stage_weights(job.recipe.run_dir, name, weights, engine.loss)
    distributed.barrier()
    _evaluate(job, name, state, engine, list(job.recipe.stages), final=True)
    state = replace(state, stage=index + 1, stage_step=0)
    _save(job, engine, state)
    return state


def _evaluate(
    job: Job,
    name: str,
    state: RunState,
    engine: Engine,
    token_stages: list[str],
    final: bool = False,
) -> None:
    """Evaluate the current weights at the token lengths of some stages; collective."""
    if not job.evaluator.sets:
        return
    weights = engine.full_weights()
    records = []
    for at in token_stages:
        tokens = job.recipe.stages[at].tokens
        model = build_model(
            job.recipe.model,
            tokens=tokens,
            vocab_size=job.dataset.manifest.tokenizer.vocab_size,
            device=job.runtime.device,
            weights=weights,
        )
        record: dict[str, Any] = {
            "tokens": at,
            "image_px": tokens.image_px,
            "image_tokens": image_tokens(job.recipe, job.recipe.stages[at])[1],
            "text_tokens": tokens.text_tokens,
            "sets": job.evaluator.evaluate(model),
        }
        records.append(record)
        where = {"stage": name, "samples_seen": state.samples_seen, "step": state.step}
        job.log.event("evaluation", **where, **record)
        for set_name, result in record["sets"].items():
            job.log.say(
                f"{name} step {state.stage_step}, {set_name} at {tokens.image_px} px / "
                f"{tokens.text_tokens} text tokens: R@1 image to text "
                f"{result['image_to_text']['r@1']:.1%}, text to image "
                f"{result['text_to_image']['r@1']:.1%}"
            )
        if final and at == list(job.recipe.stages)[-1]:
            gallery = job.evaluator.gallery(model, job.recipe.seed)
            if job.runtime.is_main:
                (job.recipe.run_dir / "gallery.json").write_text(json.dumps(gallery))
    if final and job.runtime.is_main:
        _write_evaluation(job.recipe, name, state, records)


def _write_evaluation(
    recipe: Recipe, name: str, state: RunState, records: list[dict[str, Any]]
) -> None:
    """evaluation.json: this stage's figures beside earlier stages'; on top its own lengths'."""
    path = recipe.run_dir / "evaluation.json"
    before = list(recipe.stages)[: list(recipe.stages).index(name)]
    known = json.loads(path.read_text())["stages"] if path.is_file() else []
    stages = [record for record in known if record["after"] in before]
    stages += [{"after": name, "samples_seen": state.samples_seen, **r} for r in records]
    own = next(record for record in records if record["tokens"] == name)
    path.write_text(json.dumps({**own["sets"], "stages": stages}, indent=2) + "\n")


def _save(job: Job, engine: Engine, state: RunState) -> None:
    checkpoint.save(
        engine,
        job.checkpoints,
        state,
        keep=job.recipe.checkpoint.keep,
        runtime=job.runtime,
    )
    job.log.event("checkpoint", step=state.step, samples_seen=state.samples_seen)


class Meter:
    """Times of the steps since the last reading."""

    def __init__(self, global_batch_samples: int) -> None:
        self.batch = global_batch_samples
        self.replaced = 0
        self.restart()

    def restart(self) -> None:
        """Forget the time since the last reading: it was spent on something else."""
        self.steps, self.wait, self.begin = 0, 0.0, time.perf_counter()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    def stepped(self, replaced: dict[str, int]) -> None:
        self.steps += 1
        self.replaced += sum(replaced.values())

    def read(self) -> dict[str, float]:
        """images_per_s of all ranks, step_s and data_wait_s per step; starts anew."""
        steps = max(self.steps, 1)
        seconds = time.perf_counter() - self.begin
        values = {
            "images_per_s": self.batch * steps / seconds,
            "step_s": seconds / steps,
            "data_wait_s": self.wait / steps,
            "samples_replaced": self.replaced,
        }
        self.restart()
        return values


def _log_start(job: Job, name: str, stage: StageOptions, state: RunState, engine: Engine) -> None:
    module: Any = engine.engine.module
    kept, full = image_tokens(job.recipe, stage)
    if not job.log.is_main:
        return
    parameters = {
        tower: sum(p.numel() for p in getattr(module, tower).parameters())
        for tower in ("image", "text")
    }
    job.log.event(
        "start",
        samples_seen=state.samples_seen,
        commit=run_log.code_commit(),
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
            stage=name,
            samples_seen=state.samples_seen,
            step=state.step,
            image_tokens=kept,
            image_tokens_full=full,
            global_batch_samples=stage.global_batch_samples,
            steps=stage.steps,
            **{k: v for k, v in asdict(stage.tokens).items() if k in ("image_px", "text_tokens")},
        )
    job.log.say(
        f"stage {name} from step {state.stage_step} of {stage.steps}: {stage.tokens.image_px} px "
        f"({kept} image tokens), {stage.tokens.text_tokens} text tokens, batch "
        f"{stage.global_batch_samples} on {job.runtime.world_size} rank(s), {job.precision}, "
        f"ZeRO {engine.zero_stage}"
    )


def _log_step(
    job: Job,
    name: str,
    state: RunState,
    engine: Engine,
    result: StepResult,
    rate: float,
    timing: dict[str, float],
) -> None:
    job.log.event(
        "step",
        stage=name,
        step=state.step,
        samples_seen=state.samples_seen,
        learning_rate=rate,
        logit_scale=engine.temperature.scale,
        **asdict(result),
        **timing,
    )
    job.log.progress(
        state.samples_seen,
        loss=f"{result.loss:.3f}",
        acc=f"{result.image_to_text_accuracy:.0%}",
        wait=f"{timing['data_wait_s'] / timing['step_s']:.0%}",
    )


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


if __name__ == "__main__":
    main()
