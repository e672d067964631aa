"""`python -m pretrain.plan --config RECIPE --gpus 8 --gpu h100`: what a recipe will take.

Without --config, `--gpus 8 --gpu a100-80g --days 3` (or --cost USD) ranks the recipes that come
along by their published accuracy.
"""

from collections.abc import Sequence

from pretrain.cli import Command, end, run

PLAN = Command(
    program="python -m pretrain.plan",
    description="What a recipe takes in time, memory, pictures and money. Beside these options, "
    "those of a recipe as in training: --config FILE and dotted overrides.",
    run="pretrain.plan.command:plan",
    read="pretrain.plan.words:read",
    options=("pretrain.plan.options:PlanOptions",),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the request cannot be met."""
    return run(PLAN, arguments)


if __name__ == "__main__":
    end(main())
