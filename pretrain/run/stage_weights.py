"""A stage's weights in the run folder: what the next stage, evaluation and export start from."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.base.distributed import run_together
from pretrain.base.files import why_not_written, write_tensors
from pretrain.base.run_files import AVERAGED, CHECKPOINTS, STAGES
from pretrain.engine.options import WeightsKind
from pretrain.losses.objective import Objective
from pretrain.models.clip import CLIP, resize_weights
from pretrain.models.options import StartOptions
from pretrain.models.starting import load_start
from pretrain.recipe.recipe import Recipe
from pretrain.run.checkpoint import complete
from pretrain.run.late_files import await_seen, unseen
from pretrain.run.record import FileSum, file_sum, read_record

_OBJECTIVE = "loss."  # stands before the names of the objective's own parameters


def stage_file(run_dir: Path, stage: str) -> Path:
    return run_dir / STAGES / f"{stage}.safetensors"


def weights_name(recipe: Recipe, stage: str, kind: WeightsKind) -> str:
    """The name under which a stage's weights, or their average, are saved. ValueError where there
    is no such stage, or the run keeps no average."""
    if stage not in recipe.stages:
        raise ValueError(
            f"no stage {stage!r} in {recipe.run_dir}, whose stages are {sorted(recipe.stages)}: "
            "name another --stage"
        )
    if kind == "plain":
        return stage
    if recipe.engine.ema is None:
        raise ValueError(
            f"--weights {kind}: {recipe.run_dir} was trained without engine.ema, so it has no "
            "averaged weights: leave --weights out"
        )
    return stage + AVERAGED


def save_stage_weights(
    run_dir: Path, stage: str, weights: dict[str, Tensor], objective: Objective
) -> FileSum:
    """Whole fp32 weights, with the objective's parameters beside them; returns what was written."""
    path = stage_file(run_dir, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {_OBJECTIVE + name: value.cpu() for name, value in objective.state_dict().items()}
    try:
        write_tensors(path, {**weights, **own})
        return file_sum(path)
    except OSError as error:
        raise OSError(
            f"weights {path} could not be written: {why_not_written(error, path.parent)}. The "
            "checkpoints stand: make room, then give the same command again"
        ) from error


def check_stage_weights(run_dir: Path, stage: str, told: FileSum, late_files_s: float) -> None:
    """Wait until a stage's weights are seen here. ValueError or OSError where they are not what
    `told` says."""
    path = stage_file(run_dir, stage)
    await_seen(lambda: unseen(path, told.bytes), f"weights {path}", late_files_s)
    _check_sum(path, told)


def _check_sum(path: Path, told: FileSum) -> None:
    if file_sum(path) != told:
        raise ValueError(
            f"weights {path} differ from the sha256 of the checkpoint that names them: put the "
            "file back"
        )


def read_stage_weights(run_dir: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the model's, the objective's parameters) of a finished stage, by name.

    FileNotFoundError names what is there instead, ValueError says what is wrong with the file.
    """
    path = stage_file(run_dir, stage)
    if not path.is_file():
        finished = sorted({p.name.partition(".")[0] for p in path.parent.glob("*.safetensors")})
        raise FileNotFoundError(
            f"no weights of stage {stage!r} in {run_dir}; finished stages: {finished or 'none'}. "
            "Train it first, or name another stage"
        )
    try:
        weights = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"weights {path} are damaged ({error}): put the file back") from error
    own = [name for name in weights if name.startswith(_OBJECTIVE)]
    return weights, {name.removeprefix(_OBJECTIVE): weights.pop(name) for name in own}


def read_finished_weights(run_dir: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same for who did not train them: checked against the newest checkpoint that names them.
    A run folder without checkpoints has nothing to check them by."""
    for path in reversed(complete(run_dir / CHECKPOINTS)):
        try:
            told = read_record(path).state.stage_weights.get(stage)
        except (OSError, ValueError, RuntimeError):
            continue  # damaged, or removed meanwhile: one before it may tell
        if told is not None and stage_file(run_dir, stage).is_file():
            _check_sum(stage_file(run_dir, stage), told)
            break
    return read_stage_weights(run_dir, stage)


def load_stage_weights(
    run_dir: Path,
    stage: str,
    told: FileSum,
    model: CLIP,
    objective: Objective,
    *,
    late_files_s: float,
) -> None:
    """Fit a stage's weights into a model of other token lengths, and its objective's.

    StoppedError on all ranks where one does not see the file as it was written. Collective.
    """
    run_together(lambda: check_stage_weights(run_dir, stage, told, late_files_s))
    weights, own = run_together(lambda: read_stage_weights(run_dir, stage))
    model.load_state_dict(resize_weights(weights, model))
    objective.load_state_dict(own)


def load_start_weights(options: StartOptions, model: CLIP, objective: Objective) -> None:
    """Give a new model what the recipe starts from, and the objective an export's figures."""
    figures = load_start(options, model)
    if not figures:
        return
    own = objective.state_dict()
    own["log_scale"] = torch.full_like(own["log_scale"], math.log(figures["logit_scale"]))
    if "bias" in own and "logit_bias" in figures:
        own["bias"] = torch.full_like(own["bias"], figures["logit_bias"])
    objective.load_state_dict(own)
