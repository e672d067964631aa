"""The start of a run: everything that can be wrong with any stage is found here, in one line."""

from dataclasses import replace
from pathlib import Path

import yaml

from pretrain.base.distributed import Runtime, all_ranks, broadcast_object, run_together
from pretrain.base.files import write_durably
from pretrain.base.lock import LOCK_FILE, HeldError, Lock, owner
from pretrain.base.run_files import CHECKPOINTS, METRICS_FILE, RECIPE_FILE
from pretrain.dataset.captions import recaptions_sha256
from pretrain.engine.precision import resolve_precision
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import Stage
from pretrain.run import checkpoint, metrics
from pretrain.run.checkpoint import Checkpoint
from pretrain.run.continuation import list_changes
from pretrain.run.expectation import Expectation
from pretrain.run.inputs import enlarged_pictures, open_inputs
from pretrain.run.job import Job
from pretrain.run.metrics import RunLog
from pretrain.run.profile import Profile
from pretrain.run.record import RunState
from pretrain.run.repeats import check_repeats
from pretrain.run.saver import Saver
from pretrain.run.stage_weights import check_stage_weights
from pretrain.run.trackers import Mirror, TensorBoard, Tracker

_PATIENCE_S = 4.0  # with the owner of a run folder


def start_run(
    recipe: Recipe, resolved: str, runtime: Runtime
) -> tuple[Job, RunState, str | None, Lock | None]:
    """(job, where it stands, tag of the checkpoint to load, the lock) of a run folder.

    ValueError on every rank alike. Nothing of a run changes before all checks have passed.
    Collective.
    """
    inputs = run_together(lambda: open_inputs(recipe, runtime))
    dataset, stages = inputs.datasets[recipe.data.tier], inputs.stages
    run_together(lambda: _check_engine(recipe))
    # The main rank's answer: machines may differ, and all ranks must train alike.
    precision = broadcast_object(resolve_precision(recipe.engine.precision, runtime.device))
    weights_sha256 = "" if inputs.weights is None else inputs.weights.sha256
    concepts_sha256 = "" if inputs.balance is None else inputs.balance.sha256
    captions_sha256 = recaptions_sha256(inputs.recaptions)
    of_rank = all_ranks(
        {
            "recipe": resolved,
            "dataset": dataset.fingerprint,
            "data.weights": weights_sha256,
            "data.balance.concepts": concepts_sha256,
            "data.caption_weights": captions_sha256,
        }
    )
    run_together(lambda: _check_alike(of_rank))
    order, most = inputs.order, recipe.data.max_repeated_share
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
        concepts_sha256=concepts_sha256,
        recaptions_sha256=captions_sha256,
    )
    if found is not None:
        run_together(lambda: _check_same_run(recipe, stages, precision, found, asked))
        run_together(lambda: _check_weights(recipe, stages, found) if runtime.is_main else None)
    state = asked
    log = run_together(lambda: _open_log(recipe, resolved, stages, state, runtime))
    for line in [*enlarged_pictures(recipe, inputs.datasets), *repeats]:
        log.say(line)
    job = Job(
        recipe=recipe,
        stages=stages,
        runtime=runtime,
        precision=precision,
        datasets=inputs.datasets,
        order=order,
        weights=inputs.weights,
        recaptions=inputs.recaptions,
        evaluator=inputs.evaluator,
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
            f"run_dir={run_dir} cannot be locked ({error.strerror}): it must lie where this user "
            "can write, and its file `lock` must not be a link; choose another run_dir"
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
            "back to resume it, or choose another run_dir; only execution options and stages that "
            "have not begun can change"
        )
    if state.dataset_fingerprint != asked.dataset_fingerprint:
        raise ValueError(
            f"run_dir={run_dir} was trained on another dataset than {recipe.data.train} "
            "is now: put that one back, or choose another run_dir"
        )
    data = recipe.data
    for what, option, value in (
        ("weights", "data.weights", data.weights),
        ("concepts", "data.balance.concepts", data.balance.concepts),
        ("recaptions", "data.caption_weights", data.caption_weights),
    ):
        if getattr(state, f"{what}_sha256") != getattr(asked, f"{what}_sha256"):
            raise ValueError(
                f"run_dir={run_dir} was trained with other {what} than {data.train} holds now for "
                f"{option}={value!r}: put these back, or choose another run_dir"
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
