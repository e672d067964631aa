"""Commands of data_prep one after the other in one process, each a line of JSON on stdin."""

import json
import os
import sys
import tempfile
import time
import traceback

from data_prep.__main__ import main


def run(argv: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and all that came to stderr, of libraries too."""
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        try:
            status = main(argv)
        except BaseException:
            traceback.print_exc()
            status = 1
        for name in environment:
            del os.environ[name]
        sys.stderr.flush()
        file.seek(0)
        return status, file.read().decode()


if __name__ == "__main__":
    wait = time.sleep
    time.sleep = lambda wait_s: wait(min(wait_s, 0.05))  # waiting mends nothing on this hub
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a command prints
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), file=answers, flush=True)
