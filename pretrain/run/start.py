"""The start of a run: everything that can be wrong with any stage is found here, in one line."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml

from pretrain.base.distributed import Runtime, all_ranks, broadcast_object, run_together
from pretrain.base.files import write_durably
from pretrain.base.lock import LOCK_FILE, HeldError, Lock, owner
from pretrain.base.run_files import CHECKPOINTS, METRICS_FILE, RECIPE_FILE
from pretrain.batches.collate import caption_shares, text_counts, text_edges
from pretrain.dataset.captions import Recaption, count_ids, open_recaptions, recaptions_sha256
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import SampleWeights, open_weights
from pretrain.engine.precision import resolve_precision
from pretrain.evaluation.evaluator import Evaluator
from pretrain.models.build import build_model
from pretrain.models.options import StartOptions
from pretrain.models.starting import check_start, find_start
from pretrain.recipe.recipe import Recipe, check_ranks
from pretrain.recipe.stages import Stage, plan_stages
from pretrain.run import checkpoint, metrics
from pretrain.run.checkpoint import Checkpoint
from pretrain.run.continuation import list_changes
from pretrain.run.expectation import Expectation
from pretrain.run.job import Job, sample_order
from pretrain.run.metrics import RunLog
from pretrain.run.profile import Profile
from pretrain.run.record import RunState
from pretrain.run.repeats import check_repeats
from pretrain.run.saver import Saver
from pretrain.run.stage_weights import check_stage_weights
from pretrain.run.trackers import Mirror, TensorBoard, Tracker, check_tracker

_PATIENCE_S = 4.0  # with the owner of a run folder


def start_run(
    recipe: Recipe, resolved: str, runtime: Runtime
) -> tuple[Job, RunState, str | None, Lock | None]:
    """(job, where it stands, tag of the checkpoint to load, the lock) of a run folder.

    ValueError on every rank alike. Nothing of a run changes before all checks have passed.
    Collective.
    """
    datasets, weights, recaptions, evaluator, stages = run_together(lambda: _open(recipe, runtime))
    dataset = datasets[recipe.data.tier]
    run_together(lambda: _check_engine(recipe))
    # The main rank's answer: machines may differ, and all ranks must train alike.
    precision = broadcast_object(resolve_precision(recipe.engine.precision, runtime.device))
    weights_sha256 = "" if weights is None else weights.sha256
    captions_sha256 = recaptions_sha256(recaptions)
    of_rank = all_ranks(
        {
            "recipe": resolved,
            "dataset": dataset.fingerprint,
            "data.weights": weights_sha256,
            "data.caption_weights": captions_sha256,
        }
    )
    run_together(lambda: _check_alike(of_rank))
    order, most = sample_order(recipe, len(dataset), weights), recipe.data.max_repeated_share
    repeats = run_together(lambda: check_repeats(order, stages, most) if runtime.is_main else [])
    lock = run_together(lambda: _own(recipe.run_dir) if runtime.is_main else None)
    found: Checkpoint | None = broadcast_object(
        run_together(lambda: _newest(recipe) if runtime.is_main else None)
    )
    state = RunState() if found is None else found.state
    asked = replace(
        state,
        dataset_fingerprint=dataset.fingerprint,
        weights_sha256=weights_sha256,
        recaptions_sha256=captions_sha256,
    )
    if found is not None:
        run_together(lambda: _check_same_run(recipe, stages, precision, found, asked))
        run_together(lambda: _check_weights(recipe, stages, found) if runtime.is_main else None)
    state = asked
    log = run_together(lambda: _open_log(recipe, resolved, stages, state, runtime))
    for line in repeats:
        log.say(line)
    job = Job(
        recipe=recipe,
        stages=stages,
        runtime=runtime,
        precision=precision,
        datasets=datasets,
        weights=weights,
        recaptions=recaptions,
        evaluator=evaluator,
        log=log,
        saver=Saver(recipe.run_dir / CHECKPOINTS, recipe.checkpoint, runtime, log),
        expectation=Expectation(
            recipe, stages, runtime, vocab_size=dataset.manifest.tokenizer.vocab_size
        ),
        profile=Profile(
            recipe.log.profile_steps, recipe.run_dir, runtime.device, is_main=runtime.is_main
        ),
    )
    return job, state, None if found is None else found.tag, lock


def _open(
    recipe: Recipe, runtime: Runtime
) -> tuple[dict[str, Dataset], SampleWeights | None, tuple[Recaption, ...], Evaluator, list[Stage]]:
    """The dataset by tier, its weights and the recaptions that are drawn, the evaluation sets, and
    the stages, all checked."""
    check_ranks(recipe, runtime.world_size)
    check_tracker(recipe.log.tracker)
    train, tier, shards = recipe.data.train, recipe.data.tier, recipe.data.shards
    looks = runtime.local_rank == 0  # for its node; what it finds stops all
    datasets = {tier: Dataset(train, tier, shards=shards, looks=looks)}
    for name, stage in recipe.stages.items():
        if stage.tier is not None and stage.tier not in datasets:
            option = f"stages.{name}.tier"
            datasets[stage.tier] = Dataset(train, stage.tier, option, shards, looks)
        option = f"stages.{name}.tokens.text_reduction"
        text_counts(datasets[tier], stage.tokens.text_reduction, option)
        text_edges(datasets[tier], stage.tokens, f"stages.{name}.tokens.syntax_unit")
    dataset = datasets[tier]
    dataset.check_ids()
    find_start(recipe.start)
    if runtime.is_main:
        _check_start(recipe, dataset)
    recaptions = open_recaptions(train, dataset.manifest, recipe.data.caption_weights)
    if recipe.loss.classification_weight is not None:
        count_ids(train, dataset.manifest, recaptions)
    names = [*dataset.manifest.captions, *(one.name for one in recaptions)]
    caption_shares(names, recipe.data.caption_weights)
    asked = recipe.data.weights
    weights = None if asked is None else open_weights(train, asked, dataset.manifest)
    samples = len(dataset) if weights is None else weights.epoch_samples
    stages = plan_stages(recipe.stages, samples)
    evaluator = Evaluator(
        recipe.evaluation,
        image_sizes={stage.tokens.image_px for stage in recipe.stages.values()},
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
    )
    return datasets, weights, recaptions, evaluator, stages


def _check_start(recipe: Recipe, dataset: Dataset) -> None:
    """ValueError where the first stage's model cannot start from the given weights."""
    if recipe.start == StartOptions():
        return
    meta = torch.device("meta")
    with meta:
        model = build_model(
            recipe.model,
            tokens=next(iter(recipe.stages.values())).tokens,
            vocabulary=dataset.vocabulary,
            device=meta,
        )
    sha256, normalisation = dataset.manifest.tokenizer.sha256, recipe.data.normalisation
    check_start(recipe.start, model, sha256, normalisation)


def _check_engine(recipe: Recipe) -> None:
    # Imports DeepSpeed: seconds that a mistake in the recipe or the data need not wait for.
    from pretrain.engine.engine import check_engine

    check_engine(recipe.engine, recipe.optimizer)


def _check_alike(of_rank: list[dict[str, str]]) -> None:
    """ValueError where ranks were started with different recipes, or see different datasets."""
    for rank, its in enumerate(of_rank):
        for what, value in its.items():
            if value != of_rank[0][what]:
                raise ValueError(
                    f"rank {rank} has another {what} than rank 0: give every rank the same "
                    "command, and the same data.train on every machine"
                )


def _open_log(
    recipe: Recipe, resolved: str, stages: list[Stage], state: RunState, runtime: Runtime
) -> RunLog:
    """The run's log from where the run stands, with the recipe that goes on beside it."""
    lines = 0
    if runtime.is_main:
        write_durably(recipe.run_dir / RECIPE_FILE, resolved)
        lines = metrics.truncate(recipe.run_dir, state.samples_seen)
    mirrors: list[Mirror] = []
    if runtime.is_main and recipe.log.tensorboard:
        mirrors.append(TensorBoard(recipe.run_dir, state.samples_seen))
    if runtime.is_main and recipe.log.tracker is not None:
        config = yaml.safe_load(resolved)
        mirrors.append(Tracker(recipe.log.tracker, recipe.log.project, recipe.run_dir, config))
    log = RunLog(
        recipe.run_dir,
        is_main=runtime.is_main,
        samples=sum(stage.samples for stage in stages),
        samples_seen=state.samples_seen,
        lines=lines,
        mirrors=mirrors,
    )
    if runtime.is_main and lines < state.log_lines:
        log.say(
            f"{recipe.run_dir / METRICS_FILE} lacks {state.log_lines - lines} of {state.log_lines} "
            "lines of stages, steps and evaluations from before this checkpoint: the run goes on, "
            "its report and evaluation.json have gaps"
        )
    return log


def _own(run_dir: Path) -> Lock:
    """Until the process ends. A rank whose launcher was killed needs a moment to end."""
    path = run_dir / LOCK_FILE
    try:
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock = Lock(path, patience_s=_PATIENCE_S)
        lock.sign()
        return lock
    except HeldError as error:
        raise RuntimeError(
            f"run_dir={run_dir} is being trained by another run ({owner(path)}): wait "
            "for it, end it, or choose another run_dir"
        ) from error
    except OSError as error:
        raise OSError(
            f"run_dir={run_dir} cannot be owned ({error.strerror}): it must lie where this user "
            "can write, and its file `lock` is none of another place; choose another run_dir"
        ) from error


def _newest(recipe: Recipe) -> Checkpoint | None:
    folder = recipe.run_dir / CHECKPOINTS
    return checkpoint.newest(folder, late_files_s=recipe.checkpoint.late_files_s)


def _check_same_run(
    recipe: Recipe,
    stages: list[Stage],
    precision: str,
    found: Checkpoint,
    asked: RunState,
) -> None:
    """ValueError where a run folder's checkpoint cannot be continued by what is asked now."""
    run_dir, state = recipe.run_dir, found.state
    if changed := list_changes(found.fixed, recipe, stages, precision):
        raise ValueError(
            f"run_dir={run_dir} holds a run with other options: {'; '.join(changed)}. Put these "
            "back to resume it, or choose another run_dir; only execution and the stages that have "
            "not begun can change"
        )
    if state.dataset_fingerprint != asked.dataset_fingerprint:
        raise ValueError(
            f"run_dir={run_dir} was trained on another dataset than {recipe.data.train} "
            "is now: put that one back, or choose another run_dir"
        )
    if state.weights_sha256 != asked.weights_sha256:
        raise ValueError(
            f"run_dir={run_dir} was trained with other weights than data.weights="
            f"{recipe.data.weights!r} of {recipe.data.train} are now: put that file back, or "
            "choose another run_dir"
        )
    if state.recaptions_sha256 != asked.recaptions_sha256:
        raise ValueError(
            f"run_dir={run_dir} was trained with other recaptions than {recipe.data.train} "
            f"holds now for data.caption_weights={recipe.data.caption_weights}: put these folders "
            "back, or choose another run_dir"
        )


def _check_weights(recipe: Recipe, stages: list[Stage], found: Checkpoint) -> None:
    """ValueError where the weights that the next stage starts from are damaged. None are read
    where the checkpoint is inside a stage, or the last stage has ended."""
    state, folder = found.state, recipe.run_dir / CHECKPOINTS
    if state.stage_step > 0 or state.stage >= len(stages):
        return
    before = stages[state.stage - 1].name
    told, late_files_s = state.stage_weights[before], recipe.checkpoint.late_files_s
    try:
        check_stage_weights(recipe.run_dir, before, told, late_files_s)
    except (ValueError, OSError) as error:
        earlier = [path.name for path in checkpoint.complete(folder) if path.name < found.tag]
        raise ValueError(
            f"stage {stages[state.stage].name} cannot start: {error}. Put that file back, or "
            f"remove {folder / found.tag}: the same command then makes it again from "
            f"{earlier[-1] if earlier else 'the first step on'}"
        ) from error
