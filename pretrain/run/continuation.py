"""What a run folder's finished and running stages have fixed, and whether a resume keeps it.

Fixed is what decides the numbers: seed, model, loss, optimizer, precision, the data's choices, and
every option of the stages that have begun. How it is executed (micro batch, ZeRO stage, compile,
workers, where the dataset lies) and the stages still to come can be changed at any resume.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.batches.order import NEWEST_RULE, OLDEST_RULE, OrderRule
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import Stage

_WHOLE = ("seed", "model", "loss", "optimizer", "temperature_base_learning_rate")
_DATA = ("tier", "caption_weights", "weights", "order", "shuffle_window_samples", "normalisation")
# Execution, or said by `steps` and `warmup_steps` once the dataset is known.
_OF_A_STAGE_FREE = ("micro_batch_samples", "samples", "epochs", "warmup_share")


def fixed_values(recipe: Recipe, stages: list[Stage], precision: str) -> dict[str, Any]:
    """All values that decide the numbers of these stages (those that have begun), for JSON."""
    values: dict[str, Any] = {name: _plain(getattr(recipe, name)) for name in _WHOLE}
    values["start"] = _plain(recipe.start)
    values["data"] = {name: _plain(getattr(recipe.data, name)) for name in _DATA}
    values["engine"] = {"precision": precision}
    values["stages"] = {stage.name: _stage_values(stage) for stage in stages}
    return values


def changed_values(
    fixed: dict[str, Any], recipe: Recipe, stages: list[Stage], precision: str
) -> list[str]:
    """What a resume asks for in another way than the run folder has it, each as one phrase.

    An option that `fixed` does not know yet counts as having had its default; one that is no
    longer known is passed over.
    """
    found: list[str] = []
    for name in _WHOLE:
        found += _differences(getattr(recipe, name), fixed.get(name), name)
    # Run folders before November 2026 all began with random weights.
    found += _differences(recipe.start, fixed.get("start", {}), "start")
    free = tuple(one.name for one in dataclasses.fields(recipe.data) if one.name not in _DATA)
    data = {**fixed["data"], "order": _fixed_order(fixed)}
    found += _differences(recipe.data, data, "data", skip=free)
    # Run folders before November 2026 hold what was asked for, `auto` too.
    if fixed["engine"]["precision"] not in ("auto", precision):
        found.append(f"engine.precision={precision} (was {fixed['engine']['precision']})")
    begun = list(fixed["stages"])
    if (names := [stage.name for stage in stages[: len(begun)]]) != begun:
        return [*found, f"stages {names} (were {begun})"]
    for stage in stages[: len(begun)]:
        old = fixed["stages"][stage.name]
        options = dataclasses.replace(
            stage.options,
            steps=stage.steps,
            warmup_steps=stage.warmup_steps,
            samples=None,
            epochs=None,
            warmup_share=None,
        )
        found += _differences(options, old, f"stages.{stage.name}", skip=_OF_A_STAGE_FREE)
    return found


def with_order(recipe: Recipe, fixed: dict[str, Any] | None) -> Recipe:
    """The recipe with its rule of the sample order: what is asked for, else what the run folder
    began with, else the newest."""
    if recipe.data.order is not None:
        return recipe
    order = NEWEST_RULE if fixed is None else _fixed_order(fixed)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, order=order))


def _fixed_order(fixed: dict[str, Any]) -> OrderRule:
    # Run folders before lanes do not name their rule.
    return fixed["data"].get("order", OLDEST_RULE)


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


def _differences(asked: Any, fixed: Any, where: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    if dataclasses.is_dataclass(asked) and isinstance(fixed, dict):
        for one in dataclasses.fields(asked):
            if one.name in skip:
                continue
            value = getattr(asked, one.name)
            if one.name in fixed:
                yield from _differences(value, fixed[one.name], f"{where}.{one.name}")
            elif value != _default(one):
                yield f"{where}.{one.name}={_plain(value)} (was {_plain(_default(one))})"
    elif _plain(asked) != fixed:
        yield f"{where}={_plain(asked)} (was {fixed})"


def _default(option: "dataclasses.Field[Any]") -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return None if option.default is dataclasses.MISSING else option.default
