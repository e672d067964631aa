"""The start of a run: everything that can be wrong with any stage is found here, in one line."""

from pathlib import Path
from typing import Any

from pretrain.data.collate import caption_shares
from pretrain.data.dataset import Dataset, check_tier
from pretrain.distributed import Runtime, agreed, broadcast_object
from pretrain.engine.ds_config import read_ds_config, zero_stage
from pretrain.engine.engine import check_engine
from pretrain.engine.precision import resolve_precision
from pretrain.evaluation.evaluator import Evaluator
from pretrain.files import write_durably
from pretrain.recipe import Recipe, check_ranks, stored_recipe
from pretrain.run import checkpoint, metrics
from pretrain.run.checkpoint import Checkpoint, RunState
from pretrain.run.continuation import changed_values, fixed_values
from pretrain.run.job import Job
from pretrain.run.lock import RunLock
from pretrain.run.metrics import RunLog
from pretrain.run_folder import CHECKPOINTS, RECIPE_FILE
from pretrain.stages import Stage, plan_stages


def start_run(
    recipe: Recipe, resolved: str, runtime: Runtime
) -> tuple[Job, RunState, str | None, RunLock | None]:
    """(job, where it stands, tag of the checkpoint to load, the lock) of a run folder.

    ValueError on every rank alike. Nothing is written before all checks have passed. Collective.
    """
    dataset, evaluator, stages = agreed(lambda: _open(recipe, runtime))
    # The main rank's answer: machines may differ, and all ranks must train alike.
    precision = broadcast_object(resolve_precision(recipe.engine.precision, runtime.device))
    lock = agreed(lambda: _own(recipe.run_dir) if runtime.is_main else None)
    folder = recipe.run_dir / CHECKPOINTS
    found: Checkpoint | None = broadcast_object(
        agreed(lambda: checkpoint.newest(folder) if runtime.is_main else None)
    )
    fresh = RunState(dataset_fingerprint=dataset.fingerprint)
    state = fresh if found is None else found.state
    if found is not None:
        agreed(lambda: _check_same_run(recipe, stages, precision, found, fresh, runtime))
    if runtime.is_main:
        write_durably(recipe.run_dir / RECIPE_FILE, resolved)
        metrics.truncate(recipe.run_dir, state.samples_seen)
    log = RunLog(
        recipe.run_dir,
        is_main=runtime.is_main,
        tensorboard=recipe.log.tensorboard,
        samples=sum(stage.samples for stage in stages),
        samples_seen=state.samples_seen,
    )
    job = Job(
        recipe=recipe,
        stages=stages,
        runtime=runtime,
        precision=precision,
        dataset=dataset,
        evaluator=evaluator,
        log=log,
    )
    return job, state, None if found is None else found.tag, lock


def _open(recipe: Recipe, runtime: Runtime) -> tuple[Dataset, Evaluator, list[Stage]]:
    check_ranks(recipe, runtime.world_size)
    check_engine(recipe.engine, recipe.optimizer)
    dataset = Dataset(recipe.data.train, recipe.data.tier)
    for name, stage in recipe.stages.items():
        if stage.tier is not None:
            check_tier(dataset.manifest, stage.tier, dataset.directory, f"stages.{name}.tier")
    caption_shares(dataset.manifest.captions, recipe.data.caption_weights)
    stages = plan_stages(recipe.stages, len(dataset))
    evaluator = Evaluator(
        recipe.evaluation,
        image_sizes={stage.tokens.image_px for stage in recipe.stages.values()},
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
    )
    return dataset, evaluator, stages


def _own(run_dir: Path) -> RunLock:
    try:
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"run_dir={run_dir} cannot be written ({error.strerror}): choose another run_dir"
        ) from error
    return RunLock(run_dir)


def _check_same_run(
    recipe: Recipe,
    stages: list[Stage],
    precision: str,
    found: Checkpoint,
    asked: RunState,
    runtime: Runtime,
) -> None:
    """ValueError where a run folder's checkpoint cannot be continued by what is asked now."""
    state, run_dir = found.state, recipe.run_dir
    begun = state.stage + (state.stage_step > 0)
    fixed = found.fixed or _fixed_before(run_dir, begun)
    if changed := changed_values(fixed, recipe, stages, precision):
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
    if state.stage_step == 0:
        return
    now = zero_stage(read_ds_config(recipe.engine.ds_config))
    if (state.world_size, state.zero_stage) != (runtime.world_size, now):
        raise ValueError(
            f"run_dir={run_dir} stands inside a stage with {state.world_size} ranks in ZeRO "
            f"{state.zero_stage}, asked for {runtime.world_size} ranks in ZeRO {now}: start as "
            "many with that engine.ds_config (others are possible between stages, so far)"
        )


def _fixed_before(run_dir: Path, begun: int) -> dict[str, Any]:
    """What a checkpoint that does not say so itself has fixed: its recipe.yaml's values."""
    stored = stored_recipe(run_dir)
    stored["stages"] = dict(list(stored["stages"].items())[:begun])
    return stored


def begun_values(job: Job, state: RunState) -> dict[str, Any]:
    """What the stages that have begun fix, for the checkpoint."""
    begun = job.stages[: state.stage + (state.stage_step > 0)]
    return fixed_values(job.recipe, begun, job.precision)
