"""What a run folder's finished and running stages have fixed, and whether a resume keeps it.

Fixed is what decides the numbers: seed, model, loss, optimizer, precision, the weights' average,
the data's choices, and every option of the stages that have begun. How it is executed (micro batch,
ZeRO stage, compile, workers, where the dataset lies) and the stages still to come can be changed at
any resume.
"""

import dataclasses
from pathlib import Path
from typing import Any

from pretrain.base.checks import differences
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import Stage

_WHOLE = ("seed", "model", "start", "loss", "optimizer", "temperature_base_learning_rate")
_DATA = (
    *("tier", "caption_weights", "weights", "balance"),
    *("shuffle_window_samples", "normalisation"),
)
# Execution, or said by `steps` and `warmup_steps` once the dataset is known.
_OF_A_STAGE_FREE = ("micro_batch_samples", "samples", "epochs", "warmup_share")


def list_fixed(recipe: Recipe, stages: list[Stage], precision: str) -> dict[str, Any]:
    """All values that decide the numbers of these stages (those that have begun), for JSON."""
    values: dict[str, Any] = {name: _plain(getattr(recipe, name)) for name in _WHOLE}
    values["data"] = {name: _plain(getattr(recipe.data, name)) for name in _DATA}
    engine = recipe.engine
    values["engine"] = {
        "precision": precision,
        "reduce_dtype": engine.reduce_dtype,
        "ema": engine.ema,
    }
    values["stages"] = {stage.name: _stage_values(stage) for stage in stages}
    return values


def list_changes(
    fixed: dict[str, Any], recipe: Recipe, stages: list[Stage], precision: str
) -> list[str]:
    """What a resume asks for in another way than the run folder has it, each as one phrase."""
    begun = list(fixed["stages"])
    asked = list_fixed(recipe, stages[: len(begun)], precision)
    if (names := list(asked["stages"])) != begun:
        return [f"stages {names} (were {begun})"]
    return [
        f"{where}={now} (was {before})"
        for name in sorted(asked.keys() | fixed.keys())
        for where, now, before in differences(asked.get(name), fixed.get(name), name)
    ]


def _stage_values(stage: Stage) -> dict[str, Any]:
    values = _plain(stage.options)
    for name in _OF_A_STAGE_FREE:
        del values[name]
    return {**values, "steps": stage.steps, "warmup_steps": stage.warmup_steps}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
