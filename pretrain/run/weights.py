"""A stage's weights in the run folder: what the next stage, evaluation and export start from."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.files import aside, rename_durably, sync
from pretrain.losses.contrastive import ContrastiveLoss
from pretrain.models.clip import CLIP, resized_weights

_LOG_SCALE = "log_scale"


def stage_file(run_dir: Path, stage: str) -> Path:
    return run_dir / "stages" / f"{stage}.safetensors"


def save_stage_weights(
    run_dir: Path, stage: str, weights: dict[str, Tensor], loss: ContrastiveLoss
) -> None:
    """Whole fp32 weights with the log of the logit scale beside them."""
    path = stage_file(run_dir, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**weights, _LOG_SCALE: loss.log_scale.detach().cpu()}
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, str(aside(path)))
    sync(aside(path))
    rename_durably(aside(path), path)


def read_stage_weights(run_dir: Path, stage: str) -> tuple[dict[str, Tensor], Tensor]:
    """(weights, log_scale) of a finished stage. FileNotFoundError names what is there instead."""
    path = stage_file(run_dir, stage)
    if not path.is_file():
        finished = sorted(p.stem for p in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(
            f"no weights of stage {stage!r} in {run_dir}; finished stages: {finished or 'none'}. "
            "Train it first, or name another stage"
        )
    weights = load_file(str(path))
    return weights, weights.pop(_LOG_SCALE)


@torch.no_grad()
def load_stage_weights(run_dir: Path, stage: str, model: CLIP, loss: ContrastiveLoss) -> None:
    """Fit a stage's weights into a model of other token lengths, and its temperature."""
    weights, log_scale = read_stage_weights(run_dir, stage)
    model.load_state_dict(resized_weights(weights, model))
    loss.log_scale.copy_(log_scale)
