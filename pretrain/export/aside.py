"""A model folder written aside, which gets its name only when it is whole and judged."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.base.files import aside_name, rename_durably, sync
from pretrain.base.run_files import CHECKPOINTS, RECIPE_FILE


@contextmanager
def folder_aside(out: Path, last: str, stale: Iterable[str] = ()) -> Iterator[Path]:
    """A new folder beside `out`, whose files become `out`'s when the body ends without a fault.

    last: the file without which the folder is no model; it goes first and comes last. stale: names
    of an earlier model's files to remove where the new one lacks them. Other files in `out` stay.
    Whatever raises leaves `out` as it was; a ValueError then names `out`, not the folder aside.
    """
    final = out.resolve()
    if final.exists() and not final.is_dir():
        raise ValueError(f"{out} is not a folder: give another --out")
    if (final / CHECKPOINTS).is_dir():
        raise ValueError(f"{out} is a run folder, whose {RECIPE_FILE} would be lost: give another "
                         "--out")  # fmt: skip
    final.parent.mkdir(parents=True, exist_ok=True)
    # A rename must stay on one disk, and a mount point's parent is on another.
    beside = final if os.path.ismount(final) else final.parent
    unique = aside_name(beside / f".{final.name}")
    folder = unique / final.name  # transformers names its copy of a folder's code after the folder
    try:
        folder.mkdir(parents=True)
        yield folder
        _publish(folder, final, last, stale)
    except ValueError as error:
        if str(folder) not in str(error):
            raise
        raise ValueError(str(error).replace(str(folder), str(out))) from error
    finally:
        shutil.rmtree(unique, ignore_errors=True)


def _publish(folder: Path, out: Path, last: str, stale: Iterable[str]) -> None:
    sync(folder)
    if not out.exists():
        rename_durably(folder, out)
        return
    (out / last).unlink(missing_ok=True)
    for name in stale:
        if not (folder / name).exists():
            (out / name).unlink(missing_ok=True)
    sync(out)
    # From behind: ONNX weights (image.onnx.data) before the file that names them.
    files = sorted(folder.iterdir(), reverse=True)
    for file in sorted(files, key=lambda file: file.name == last):
        rename_durably(file, out / file.name)
