"""A recipe from a command line and its YAML files, and from a run folder."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pretrain.base.run_files import RECIPE_FILE
from pretrain.base.spelling import read_yaml, spell
from pretrain.cli import Command, parser
from pretrain.models.presets import PRESETS
from pretrain.recipe.recipe import Recipe

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


def read(_: Command, words: Sequence[str]) -> list[Any]:
    """[recipe, resolved YAML] of a command line."""
    return list(parse(words))


def parse(arguments: Sequence[str] | None = None) -> tuple[Recipe, str]:
    """(recipe, resolved YAML) of a command line: later files over earlier, dotted options over all.

    ValueError or FileNotFoundError name the option, what was found and what is possible, in one
    line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--stages.help" in words:
        parser(TRAIN).parse_args(words)
    spelled, rest = spell(words, (Recipe,), takes_config=True)
    if rest:
        raise ValueError(f"{rest[0]!r} is one word too many: options begin with --")
    options = parser(TRAIN)
    try:
        spelled, presets = _with_presets(spelled)
        parsed = options.parse_args(spelled)
    except argparse.ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if parsed.model.preset in presets:  # its numbers stand there, and hold whatever it means later
        parsed.model.preset = None
    return _recipe(options, parsed), options.dump(parsed, skip_none=False)


def _with_presets(words: list[str]) -> tuple[list[str], list[str]]:
    """(a spelled command line where the numbers of every preset stand too, the presets found).

    Its numbers are a recipe right before the file that names it, or behind the last file where the
    command line does: over earlier files, under all that its own source says beside it.
    """
    found: list[str] = []
    presets: list[str] = []
    behind_files = 0
    for word in words:
        option, _, value = word.partition("=")
        if option == "--config":
            model = read_yaml(Path(value)).get("model")
            if name := model.get("preset") if isinstance(model, dict) else None:
                presets.append(name)
                found.append(_preset_word(name))
            behind_files = len(found) + 1
        elif option == "--model.preset" and value != "null":
            presets.append(value)
            found.insert(behind_files, _preset_word(value))
        found.append(word)
    return found, presets


def _preset_word(name: str) -> str:
    return "--config=" + json.dumps({"model": PRESETS[name]})


def _recipe(options: ArgumentParser, parsed: Namespace) -> Recipe:
    values = options.instantiate(parsed)
    return Recipe(**{name: getattr(values, name) for name in Recipe.__dataclass_fields__})


def stored_recipe(run: Path) -> dict[str, Any]:
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
        return _recipe(options, options.parse_object({**stored_recipe(run), "run_dir": str(run)}))
    except argparse.ArgumentError as error:
        raise ValueError(
            f"{run / RECIPE_FILE} is not of this version ({' '.join(str(error).split())}): train "
            "the run anew with `python -m pretrain.train`"
        ) from error
