"""A recipe from a command line and its YAML files, and from a run folder."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pretrain.base.run_files import RECIPE_FILE
from pretrain.base.spelling import merge, spell
from pretrain.base.yaml_files import read_yaml
from pretrain.cli import Command, parser
from pretrain.models.presets import PRESETS
from pretrain.recipe.habits import refuse_habits
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stage_words import replace_lengths, with_new_stages, with_one_length

TRAIN = Command(
    program="python -m pretrain.train",
    description="CLIPA pretraining on DeepSpeed. The same command resumes a stopped run. The "
    "options of a stage are --stages.NAME.OPTION; --stages.help lists them, without the NAME.",
    run="pretrain.loop:main",
    read="pretrain.recipe.parsing:read",
    options=("pretrain.recipe.recipe:Recipe",),
    takes_config=True,
    first=(
        "config",
        "run_dir",
        "data.train",
        "data.tier",
        "data.weights",
        "stages",
        "model.preset",
        "engine.ds_config",
        "engine.precision",
        "checkpoint.every_minutes",
        "evaluation.sets",
        "seed",
    ),
)

_KINDS = ("kind", "text_reduction", "image_reduction")  # of optimizers, losses, reductions


def read(_: Command, words: Sequence[str]) -> list[Any]:
    """[recipe, resolved YAML] of a command line."""
    return list(parse(words))


def parse(arguments: Sequence[str] | None = None) -> tuple[Recipe, str]:
    """(recipe, resolved YAML) of a command line: later files over earlier, dotted options over all.

    ValueError or FileNotFoundError name the option, what was found and what is possible, in one
    line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    spelled = spell_recipe(words)
    options = parser(TRAIN)
    try:
        spelled, presets = _laid_over(spelled)
        parsed = options.parse_args(spelled)
    except argparse.ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if parsed.model.preset in presets:  # its numbers stand there, and hold whatever it means later
        parsed.model.preset = None
    return _recipe(options, parsed), options.dump(parsed, skip_none=False)


def spell_recipe(words: Sequence[str], *others: type) -> list[str]:
    """A command line as the parser wants it; `others` are dataclasses whose options may stand among
    the recipe's. ValueError for the first word that is neither's."""
    refuse_habits(words)
    try:
        spelled, rest = spell(with_new_stages(words), (*others, Recipe), takes_config=True)
    except ValueError as error:
        if "is not understood" in str(error) and any(f".{kind} " in str(error) for kind in _KINDS):
            raise ValueError(f"{error}; CONTRIBUTING.md says how one is added") from error
        raise
    if rest:
        raise ValueError(f"{rest[0]!r} is one word too many: options begin with --")
    return spelled


def _laid_over(words: list[str]) -> tuple[list[str], list[str]]:
    """(a spelled command line with one --config of all files, the presets found).

    A preset's numbers are a recipe right before the file that names it, or behind the last file
    where the command line does: over earlier files, under all that its own source says beside it.
    """
    files: dict[str, Any] = {}
    typed: list[str] = []
    presets: list[str] = []

    def lay(options: dict[str, Any]) -> None:
        replace_lengths(files, options)
        merge(files, options, Recipe)

    for word in words:
        option, _, value = word.partition("=")
        if option == "--config":
            options = read_yaml(Path(value))
            model = options.get("model")
            if name := model.get("preset") if isinstance(model, dict) else None:
                presets.append(name)
                lay({"model": PRESETS[name]})
            lay(options)
            continue
        if option == "--model.preset" and value != "null":
            presets.append(value)
            lay({"model": PRESETS[value]})
        typed.append(word)
    config = ["--config=" + json.dumps(files, default=str)] if files else []
    return [*config, *with_one_length(typed)], presets


def _recipe(options: ArgumentParser, parsed: Namespace) -> Recipe:
    values = options.instantiate(parsed)
    return Recipe(**{name: getattr(values, name) for name in Recipe.__dataclass_fields__})


def read_values(run: Path) -> dict[str, Any]:
    """The values of a run folder's resolved recipe, as plain data."""
    path = run / RECIPE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {RECIPE_FILE} in {run}: not a run folder; check --run_dir")
    return read_yaml(path)


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run folder, wherever that folder lies now. ValueError, in one line,
    where another version of this code has written it."""
    options = parser(TRAIN)
    try:
        return _recipe(options, options.parse_object({**read_values(run), "run_dir": str(run)}))
    except argparse.ArgumentError as error:
        raise ValueError(
            f"{run / RECIPE_FILE} is not of this version ({' '.join(str(error).split())}): train "
            "the run anew with `python -m pretrain.train`"
        ) from error
