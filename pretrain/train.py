"""Train, or go on with, a recipe.

torchrun --nproc_per_node 8 -m pretrain.train --config pretrain/recipes/demo.yaml
"""

from collections.abc import Sequence

from pretrain.cli import end, run
from pretrain.recipe.parsing import TRAIN


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 75 stopped on request (the same command goes on), 2 the request cannot
    be met (one line says why), 124 stood still, 130 interrupted at once, 1 anything else."""
    return run(TRAIN, arguments)


if __name__ == "__main__":
    end(main())
