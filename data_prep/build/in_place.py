"""What `index` adds to a build: tars of anyone's making whose pictures stay where they are."""

import bisect
import os
from dataclasses import replace
from pathlib import Path

from data_prep.build.options import BuildOptions
from data_prep.build.tasks import Task, TierPlan
from data_prep.sources import Corpus
from data_prep.sources.stores import is_far
from data_prep.sources.webdataset import WebDatasetSource
from pretrain.dataset.manifest import PicturesInfo

TIER = TierPlan(name="full", shortest_px=None, jpeg_quality=None)
NOTE = (
    "the pictures stay as they are: training decodes them at their own size, and what is no plain "
    "JPEG more slowly; `python -m benchmarks.loader` measures it"
)


def check_here(options: BuildOptions) -> None:
    """ValueError where the tars lie far away; nothing of them is asked for."""
    if is_far(options.source.source):
        raise ValueError(
            f"{options.source.source}: pictures stay in place on this machine only; `build` reads "
            "tars on the hub and on object stores"
        )
    if options.writer.store is not None:
        raise ValueError(
            f"--out={options.writer.out}: pictures stay in place on this machine only, and so does "
            "their dataset; choose a folder, or `build` for an object store"
        )


def check_apart(corpus: Corpus, options: BuildOptions) -> None:
    """ValueError where the dataset and the tars could overwrite, or be taken for, one another."""
    out, source = options.writer.folder.resolve(), Path(options.source.source)
    inside = next((path for _, path in _tars(corpus) if path.resolve().is_relative_to(out)), None)
    if inside is not None or (source.is_dir() and out.is_relative_to(source.resolve())):
        raise ValueError(
            f"out={options.writer.out}: the dataset's folder and that of the tars "
            f"({inside or source}) lie in one another; choose an --out beside it"
        )


def tar_borders(corpus: Corpus) -> list[int]:
    """The numbers of the rows at which another tar begins: no task may span two."""
    return [first for first, _ in _tars(corpus)[1:]]


def with_pictures(corpus: Corpus, options: BuildOptions, tasks: list[Task]) -> list[Task]:
    """The tasks, each with the tar in which its rows lie."""
    root, tars = _folder(corpus, options), _tars(corpus)
    firsts = [first for first, _ in tars]
    told: list[Task] = []
    for task in tasks:
        path = tars[bisect.bisect_right(firsts, task.start) - 1][1]
        name = path.relative_to(root).as_posix()
        told.append(replace(task, pictures=PicturesInfo(file=name, bytes=path.stat().st_size)))
    return told


def pictures_root(corpus: Corpus, options: BuildOptions) -> str | None:
    """What pictures_root.txt says; None where pictures are stored."""
    if options.in_place is None:
        return None
    folder = _folder(corpus, options)
    if options.in_place.relative_root:
        return os.path.relpath(folder.resolve(), options.writer.folder.resolve())
    return str(folder.absolute())


def _folder(corpus: Corpus, options: BuildOptions) -> Path:
    """The folder that was named, or else the lowest one in which all tars lie."""
    if Path(options.source.source).is_dir():
        return Path(options.source.source)
    return Path(os.path.commonpath([path.parent for _, path in _tars(corpus)]))


def _tars(corpus: Corpus) -> list[tuple[int, Path]]:
    """(number of its first row, path) of each tar."""
    assert isinstance(corpus.source, WebDatasetSource)  # the command names this format
    return corpus.source.tars()
