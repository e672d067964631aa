"""NumPy files of others: an array, or a fault in one line."""

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, read-only and mapped. No pickle.

    OSError where the file cannot be opened; ValueError, in one line that does not name it, where it
    is no whole .npy file: NumPy reads the header as Python, and raises what that raises.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (
        *(ValueError, EOFError, OverflowError, TypeError, SyntaxError, TokenError),
        *(RecursionError, MemoryError),
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # Its first line alone: NumPy's advice to trust the file is not ours.
        raise ValueError(f"not a NumPy file: {reason}") from error
