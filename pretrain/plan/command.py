"""`python -m pretrain.plan`: what a recipe takes, or which recipes a budget allows."""

from dataclasses import replace
from pathlib import Path

from pretrain.plan.budget import PLACES, RECIPES, Head, candidates, known_samples, read_head
from pretrain.plan.estimate import stage_estimate
from pretrain.plan.hardware import Machine
from pretrain.plan.options import PlanOptions
from pretrain.plan.table import budget_table, plan_table
from pretrain.recipe.parsing import parse
from pretrain.recipe.stages import plan_stages


def plan(options: PlanOptions, recipe_words: list[str]) -> str:
    """The plan of the recipe that the words name, or the ranking of all recipes."""
    machine = options.machine()
    if not any(word.split("=")[0] == "--config" for word in recipe_words):
        return _ranking(options, machine, recipe_words)
    if options.days is not None or options.cost is not None:
        raise ValueError(
            "--days and --cost rank all recipes: leave them out, or leave out --config"
        )
    recipe, _ = parse([*PLACES, *recipe_words])
    stages = plan_stages(recipe.stages, known_samples(recipe.stages, options.dataset_samples))
    return plan_table(
        [stage_estimate(recipe, stage, machine, vocab_size=options.vocab_size) for stage in stages],
        machine,
        price_per_hour=options.price,
        dataset_samples=options.dataset_samples,
        head=_head(recipe_words, weighted=recipe.data.weights is not None),
    )


def _head(recipe_words: list[str], *, weighted: bool) -> Head:
    """What the first recipe says of its published run; weights that are given are not lacking."""
    parts = [part for word in recipe_words for part in word.split("=", 1)]
    head = read_head(Path(parts[parts.index("--config") + 1]).read_text(encoding="utf-8"))
    return replace(head, lacks=None) if weighted else head


def _ranking(options: PlanOptions, machine: Machine, recipe_words: list[str]) -> str:
    if recipe_words:
        raise ValueError(f"{recipe_words[0]}: an option of a recipe; give the recipe by --config")
    if (options.days is None) == (options.cost is None):
        raise ValueError("give --config RECIPE, or one of --days and --cost to rank all recipes")
    if options.days is not None:
        hours, budget = options.days * 24, f"{options.days:g} days"
    else:
        assert options.cost is not None
        if options.price is None:
            raise ValueError(
                f"--cost {options.cost:g}: no price of {options.gpu} is known; give "
                "--price_per_gpu_hour"
            )
        hours = options.cost / options.price / machine.ranks
        budget = f"USD {options.cost:,.0f}"
    found = candidates(
        sorted(RECIPES.glob("*.yaml")),
        machine,
        dataset_samples=options.dataset_samples,
        vocab_size=options.vocab_size,
    )
    return budget_table(found, machine, hours, budget)
