"""Faults of what was asked for, told to the user on one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_faults() -> Iterator[None]:
    """A ValueError or OSError inside ends the program with code 2 and one `error:` line.

    For the checks before a command starts, which every rank makes alike: only the main one speaks.
    Past them a fault is a defect, and its traceback is wanted.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
