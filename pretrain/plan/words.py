"""The words of a plan's command line: its own options, and among them those of a recipe."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pretrain.base.spelling import option_of
from pretrain.cli import Command, values
from pretrain.plan.options import PlanOptions
from pretrain.recipe.parsing import spell_recipe


def read(command: Command, words: Sequence[str]) -> list[Any]:
    """[options of the plan, words of the recipe], which stand in any order."""
    own = {field.name for field in dataclasses.fields(PlanOptions)}
    spelled = spell_recipe(words, PlanOptions)
    ours = [word for word in spelled if option_of(word) in own]
    return [*values(command, ours), [word for word in spelled if word not in ours]]
