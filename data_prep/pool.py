"""Work spread over processes, here or on a Ray cluster: what is done depends on the items alone."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from pretrain.base.checks import check_positive
from pretrain.base.progress import write_progress

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[Any], None]

_REPORT_S = 0.5  # a worker tells of its progress no more often
_WAIT_S = 0.2
_WINDOW = 4  # items for each worker that are handed over at once


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """Where the work is done; the result does not depend on it"""

    workers: int | None = None
    """Processes that work at once. Null: one for each core that this process may use, or that the
    Ray cluster has."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine's processes. ray: a Ray cluster, whose nodes see the same disks and have
    the same installation (requirements-ray.txt)."""
    ray_address: str = "auto"
    """The cluster: auto (that of this machine, or of RAY_ADDRESS), HOST:PORT, ray://HOST:PORT; or
    local, which starts one on this machine."""
    progress_file: Path | None = None
    """JSON file that says, every few seconds, how far the work is. Null: none."""

    def __post_init__(self) -> None:
        check_positive({"--workers": self.workers})
        if self.engine == "local" and self.ray_address != "auto":
            raise ValueError(
                f"--ray-address={self.ray_address} is of a Ray cluster: add --engine ray"
            )


@dataclass(frozen=True, kw_only=True)
class ShareOptions:
    """Which share of the work is done"""

    task_index: int | None = None
    """Do the share of this number, from 0, of `task_count`. The command without both does what is
    missing and joins them; of a build, `data_prep merge` joins them too. Those of a download are
    read together by `build`."""
    task_count: int | None = None
    """How many shares there are, e.g. the tasks of a Slurm array."""

    def __post_init__(self) -> None:
        check_positive({"--task-count": self.task_count})
        if (self.task_index is None) != (self.task_count is None):
            raise ValueError(
                f"task_index={self.task_index}, task_count={self.task_count}: give both "
                "--task-index and --task-count, or neither"
            )
        if self.task_count is not None and not 0 <= (self.task_index or 0) < self.task_count:
            raise ValueError(
                f"task_index={self.task_index}, task_count={self.task_count}: --task-index counts "
                f"from 0 to {self.task_count - 1}"
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions(ShareOptions, PoolOptions):
    """Where the work is done, and which share of it; the result does not depend on it"""

    def __post_init__(self) -> None:
        ShareOptions.__post_init__(self)
        PoolOptions.__post_init__(self)


def share_of(items: int, options: PoolOptions | ShareOptions) -> range:
    """The numbers of the items that are to be done here: neighbours, which read neighbouring
    files."""
    index, count = getattr(options, "task_index", None), getattr(options, "task_count", None)
    if index is None or count is None:
        return range(items)
    return range(index * items // count, (index + 1) * items // count)


def is_share(options: PoolOptions) -> bool:
    """Whether other starts do the rest."""
    return getattr(options, "task_count", None) is not None


class _WorkerStoppedError(Exception):
    """Another process failed, or the user interrupted: what this one does is not wanted."""


def usable_workers(asked: int | None) -> int:
    """How many processes to start."""
    return asked or len(os.sched_getaffinity(0))


def run_in_pool(
    function: Callable[[S, T, Report], R],
    state: S,
    items: Sequence[T],
    options: PoolOptions,
    report: Report,
) -> Generator[R, None, None]:
    """function(state, item, report) of each item, in the order in which they come to an end.

    One worker or one item: in this process. Otherwise in fresh ones, which end with this one
    however it ends, or in a Ray cluster's, where a task whose process dies is done again. `report`
    is called here with what the function reports, now and then. The first exception stops all.
    ChildProcessError if a process dies.
    """
    write_progress(options.progress_file)
    if options.engine == "ray" and items:
        from data_prep.ray_cluster import run_on_ray  # an installation of its own

        yield from run_on_ray(function, state, items, options.ray_address, options.workers, report)
        return
    workers = min(usable_workers(options.workers), len(items))
    if workers <= 1:
        for item in items:
            yield function(state, item, report)
        return
    # Every worker's polars would start a thread a core; it reads this when it is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    reports, stop = context.SimpleQueue(), context.Event()
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start,
        initargs=(function, state, reports, stop),
    )
    try:
        left = iter(items)
        waiting = {pool.submit(_run, item) for item in islice(left, _WINDOW * workers)}
        while waiting:
            # Each wait looks at all that wait: a window of them keeps it linear in the items.
            done, waiting = wait(waiting, _WAIT_S, FIRST_COMPLETED)
            waiting |= {pool.submit(_run, item) for item in islice(left, len(done))}
            while not reports.empty():
                report(reports.get())
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process was killed (too little memory?): give the same command again, with "
            "fewer --workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    while not reports.empty():
        report(reports.get())


# What this process works with, once it is a worker.
_function: Callable[[Any, Any, Report], Any]
_state: Any
_report: Report


def _start(
    function: Callable[[Any, Any, Report], Any], state: Any, reports: Any, stop: Any
) -> None:
    """In a fresh process: remember the work, and end when the process that gave it ends."""
    global _function, _state, _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and says stop

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    def report(value: Any) -> None:
        if stop.is_set():
            raise _WorkerStoppedError
        reports.put(value)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _function, _state, _report = function, state, report


def _run(item: Any) -> Any:
    """One item in a worker."""
    return _function(_state, item, _report)


class Pace:
    """Tells when it is time to report again."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def is_due(self) -> bool:
        """At most once in REPORT_S."""
        now = time.monotonic()
        if now - self.last < _REPORT_S:
            return False
        self.last = now
        return True
