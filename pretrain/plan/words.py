"""The words of a plan's command line: its own options, and among them those of a recipe."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pretrain.base.spelling import option_of, spell
from pretrain.cli import Command, values
from pretrain.plan.options import PlanOptions
from pretrain.recipe.recipe import Recipe

# The options that are the plan's own; those of a recipe may stand among them.
_OWN = Command(
    program="python -m pretrain.plan",
    description="",
    run="pretrain.plan.command:plan",
    options=("pretrain.plan.options:PlanOptions",),
)


def read(_: Command, words: Sequence[str]) -> list[Any]:
    """[options of the plan, words of the recipe]."""
    return list(parse_words(words))


def parse_words(words: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """(options, words of the recipe) of a command line, where they stand in any order."""
    own = {field.name for field in dataclasses.fields(PlanOptions)}
    spelled, rest = spell(words, (PlanOptions, Recipe), takes_config=True)
    if rest:
        raise ValueError(f"{rest[0]!r} is one word too many: options begin with --")
    ours = [word for word in spelled if option_of(word) in own]
    return values(_OWN, ours)[0], [word for word in spelled if word not in ours]
