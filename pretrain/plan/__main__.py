"""`python -m pretrain.plan --config RECIPE --gpus 8 --gpu h100`: what a recipe will take.

Without --config, `--gpus 8 --gpu a100-80g --days 3` (or --cost USD) ranks the recipes that come
along by their published accuracy.
"""

import argparse
import dataclasses
import difflib
import sys
from dataclasses import dataclass, replace
from typing import Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from pretrain.base.checks import check_positive
from pretrain.base.faults import one_line_faults
from pretrain.cli import check_words
from pretrain.plan.budget import PLACES, RECIPES, candidates, known_samples
from pretrain.plan.communication import Links
from pretrain.plan.estimate import Machine, stage_estimate
from pretrain.plan.hardware import HARDWARE
from pretrain.plan.table import budget_table, plan_table
from pretrain.recipe.recipe import Recipe, parse
from pretrain.recipe.stages import plan_stages


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """On what a recipe is to run, or what may be spent."""

    gpus: int = 8
    """GPUs of a node (of cpu: cores)."""
    nodes: int = 1
    """Nodes."""
    gpu: Literal["h100", "h200", "a100-80g", "a100-40g", "l40s", "rtx4090", "cpu"] = "h100"
    """Kind of GPU."""
    gpu_memory_gib: float | None = None
    """Memory of a GPU, where it is not the usual one."""
    mfu: float | None = None
    """Share of the GPU's peak over all FLOPs executed; by default what was published for it."""
    gpu_link_gb_per_s: float | None = None
    """Link of a GPU to its neighbours in GB/s, one direction; by default NVLink's or PCIe's."""
    node_link_gb_per_s: float = 50.0
    """Link of a node to the others in GB/s, one direction, over all its adapters together."""
    price_per_gpu_hour: float | None = None
    """USD for a GPU-hour."""
    dataset_samples: int | None = None
    """Samples of the dataset: for lengths in epochs, and for the disk."""
    vocab_size: int = 49408
    """Rows of the token embedding (CLIP's BPE by default; a dataset's own is in its manifest)."""
    days: float | None = None
    """Without --config: rank the recipes that take at most so many days."""
    cost: float | None = None
    """Without --config: rank the recipes that cost at most so many USD."""

    def __post_init__(self) -> None:
        check_positive(
            {f"--{f.name}": getattr(self, f.name) for f in dataclasses.fields(self)
             if f.name not in ("gpu", "mfu")}
        )  # fmt: skip
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu {self.mfu}: a share of the peak, above 0 and at most 1")

    @property
    def price(self) -> float | None:
        known = HARDWARE[self.gpu].price_per_hour
        return known if self.price_per_gpu_hour is None else self.price_per_gpu_hour

    def machine(self) -> Machine:
        hardware = HARDWARE[self.gpu]
        if self.gpu_memory_gib is not None:
            hardware = replace(hardware, memory_gib=self.gpu_memory_gib)
        if self.gpu == "cpu":  # the cores of a machine share its memory: one rank
            hardware = replace(
                hardware,
                peak_tflops=hardware.peak_tflops * self.gpus,
                watts=hardware.watts * self.gpus,
                memory_gib=self.gpu_memory_gib or hardware.memory_gib * self.gpus,
            )
        return Machine(
            name=self.gpu,
            hardware=hardware,
            ranks=self.nodes if self.gpu == "cpu" else self.gpus * self.nodes,
            nodes=self.nodes,
            mfu=hardware.mfu if self.mfu is None else self.mfu,
            links=Links(
                gpu_gb_per_s=self.gpu_link_gb_per_s or hardware.link_gb_per_s,
                node_gb_per_s=self.node_link_gb_per_s,
            ),
        )


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
    )


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


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """(words of the plan, words of the recipe). ValueError for an option that neither has."""
    own = {field.name for field in dataclasses.fields(PlanOptions)}
    recipes = {field.name for field in dataclasses.fields(Recipe)} | {"config"}
    ours: list[str] = []
    theirs: list[str] = []
    current = theirs
    for word in words:
        if word.startswith("--"):
            name = word[2:].split("=")[0].split(".")[0].rstrip("+")
            if name not in own | recipes:
                close = difflib.get_close_matches(name, own | recipes, n=1)
                meant = f"did you mean --{close[0]}?" if close else f"choose one of {sorted(own)}"
                raise ValueError(f"--{name}: there is no such option; {meant}")
            current = ours if name in own else theirs
        current.append(word)
    return ours, theirs


def parse_words(words: list[str]) -> tuple[PlanOptions, list[str]]:
    """(options, words of the recipe) of a command line; -h prints the help and ends."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="pretrain.plan",
        description="What a recipe takes in time, memory, pictures and money. Beside the options "
        "below, those of a recipe as in training: --config FILE and dotted overrides.",
        exit_on_error=False,
    )
    parser.add_class_arguments(PlanOptions, as_group=False)
    if {"-h", "--help"} & set(words):
        parser.print_help()
        sys.exit(0)
    ours, theirs = split_words(words)
    check_words(ours, PlanOptions)
    try:
        values = parser.instantiate(parser.parse_args(ours))
    except argparse.ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    names = [field.name for field in dataclasses.fields(PlanOptions)]
    return PlanOptions(**{name: getattr(values, name) for name in names}), theirs


def main(arguments: list[str] | None = None) -> None:
    with one_line_faults():
        print(plan(*parse_words(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    main()
