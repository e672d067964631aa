"""Start ranks by any launcher, with their exit code and their signals passed on.

python -m pretrain.launch torchrun --nproc_per_node 8 -m pretrain.train --config RECIPE.yaml
"""

import sys

from pretrain.base.launch import main

if __name__ == "__main__":
    sys.exit(main())
