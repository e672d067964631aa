"""A stage's weights in the run folder: what the next stage, evaluation and export start from."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.base.files import why_not_written, write_tensors
from pretrain.base.run_files import STAGES
from pretrain.losses.objective import Objective
from pretrain.models.clip import CLIP, resized_weights
from pretrain.models.options import StartOptions
from pretrain.models.starting import (
    load_start,
)

_OBJECTIVE = "loss."  # stands before the names of the objective's own parameters
_OLD_NAMES = {"log_scale": _OBJECTIVE + "log_scale"}  # in run folders before November 2026


def stage_file(run_dir: Path, stage: str) -> Path:
    return run_dir / STAGES / f"{stage}.safetensors"


def save_stage_weights(
    run_dir: Path, stage: str, weights: dict[str, Tensor], objective: Objective
) -> None:
    """Whole fp32 weights, with the objective's parameters beside them."""
    path = stage_file(run_dir, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {_OBJECTIVE + name: value.cpu() for name, value in objective.state_dict().items()}
    try:
        write_tensors(path, {**weights, **own})
    except Exception as error:  # safetensors has an exception of its own
        raise OSError(
            f"weights {path} could not be written: {why_not_written(error, path.parent)}. The "
            "checkpoints stand: make room, then give the same command again"
        ) from error


def read_stage_weights(run_dir: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the model's, the objective's parameters) of a finished stage, by name.

    FileNotFoundError names what is there instead.
    """
    path = stage_file(run_dir, stage)
    if not path.is_file():
        finished = sorted(p.stem for p in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(
            f"no weights of stage {stage!r} in {run_dir}; finished stages: {finished or 'none'}. "
            "Train it first, or name another stage"
        )
    weights = {_OLD_NAMES.get(name, name): value for name, value in load_file(str(path)).items()}
    own = [name for name in weights if name.startswith(_OBJECTIVE)]
    return weights, {name.removeprefix(_OBJECTIVE): weights.pop(name) for name in own}


def load_stage_weights(run_dir: Path, stage: str, model: CLIP, objective: Objective) -> None:
    """Fit a stage's weights into a model of other token lengths, and its objective's."""
    weights, own = read_stage_weights(run_dir, stage)
    model.load_state_dict(resized_weights(weights, model))
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
