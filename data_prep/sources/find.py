"""The files that --source stands for."""

import glob
from pathlib import Path

from data_prep.sources.source import ACCEPTED


def find_files(source: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a path, folder or pattern stands for, sorted. FileNotFoundError if none.

    Of a folder, all below it with one of these suffixes.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for suffix in suffixes for file in path.rglob("*" + suffix))
        if not files:
            raise FileNotFoundError(
                f"source={source}: no {' or '.join(suffixes)} in this folder; {ACCEPTED}"
            )
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207
    if not files:
        raise FileNotFoundError(f"source={source}: no such file or pattern; {ACCEPTED}")
    return files
