"""The files that --source stands for."""

import glob
from pathlib import Path

from data_prep.sources.source import ACCEPTED
from pretrain.dataset.tars import is_hidden


def find_files(source: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a path, folder or pattern stands for, sorted. FileNotFoundError if none.

    Of a folder, all below it with one of these suffixes, hidden ones and what lies in hidden
    folders left out: macOS and notebooks leave copies there.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(
            file
            for suffix in suffixes
            for file in path.rglob("*" + suffix)
            if file.is_file() and not is_hidden(file.relative_to(path).as_posix())
        )
        if not files:
            raise FileNotFoundError(
                f"source={source}: no {' or '.join(suffixes)} in this folder; {ACCEPTED}"
            )
    elif path.is_file():
        files = [path]
    else:
        names = glob.glob(source, recursive=True)  # noqa: PTH207
        files = sorted(Path(name) for name in names if Path(name).is_file())
    if not files:
        raise FileNotFoundError(f"source={source}: no such file or pattern; {ACCEPTED}")
    return files
