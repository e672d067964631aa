"""torchrun without its report where the ranks have said themselves why they ended.

Below `python -m pretrain.launch`: a traceback of the launcher would bury their one line.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from pretrain.base import launch


def main() -> int:
    """torchrun's command line; 0, or 1 where a rank failed."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    sys.argv[0] = "torchrun"
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        folder = Path(os.environ.get(launch.FOLDER_VARIABLE, ""))
        if failure.exitcode < 0:
            how = signal.Signals(-failure.exitcode).name
            remedy = " (out of memory?)" if how == "SIGKILL" else ""
            print(f"error: rank {rank} (pid {failure.pid}) ended by {how}{remedy}", file=sys.stderr)
        elif launch.read_exit_code(folder) is None:
            print(f"error: rank {rank} ended with {failure.exitcode}, see above", file=sys.stderr)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
