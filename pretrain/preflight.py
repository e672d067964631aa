"""The pre-flight of a job: every node is looked at before the ranks start, and a bad one is named.

srun --ntasks-per-node=1 python -m pretrain.preflight --config RECIPE.yaml --run_dir runs/x …

Takes the options of `python -m pretrain.train`, and from Slurm one process a node, MASTER_ADDR,
MASTER_PORT and RANKS_PER_NODE. Ends with 0, or with 2 and a line for each bad node.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

from pretrain.cli import end, run
from pretrain.recipe.parsing import TRAIN

PREFLIGHT = replace(
    TRAIN,
    program="python -m pretrain.preflight",
    description="Look at every node of a job before its ranks start. Takes the options of "
    "`python -m pretrain.train`.",
    run="pretrain.run.preflight:check_nodes",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with a line for each bad node."""
    os.environ["RANK"] = os.environ.get("SLURM_PROCID", "0")  # one process a node, the first speaks
    return run(PREFLIGHT, arguments)


if __name__ == "__main__":
    end(main())
