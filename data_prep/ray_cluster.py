"""Tasks on a Ray cluster: Ray schedules them, and does a task again whose process or node died."""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_RETRIES = 5  # of a task whose process died; an exception of its own ends the work
_WINDOW = 2  # tasks for each CPU that are handed over at once
_WAIT_S = 1.0  # then progress is asked for, and whether the cluster has grown
_VARIABLES = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a task has one CPU


def run_on_ray(
    function: Callable[[S, T, Callable[[Any], None]], R],
    state: S,
    items: Sequence[T],
    address: str,
    most: int | None,
    report: Callable[[Any], None],
) -> Generator[R, None, None]:
    """As pool.run_in_pool; `most`: tasks at once, None for as many as the cluster has CPUs.

    Nodes may come and go meanwhile. ModuleNotFoundError and ConnectionError name the remedy.
    """
    ray = _connect(address)
    # Beside this process, whose end is the work's end.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_do)
    shared = ray.put((function, state, str(Path.cwd())))
    left, waiting = deque(items), list[Any]()
    try:
        while left or waiting:
            room = most or max(1, int(ray.cluster_resources().get("CPU", 1)))
            while left and len(waiting) < _WINDOW * room:
                # In a list the state is a reference, which a process looks up once.
                waiting.append(task.remote([shared], left.popleft(), mailbox))
            ray.wait(waiting, num_returns=1, timeout=_WAIT_S)
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            _pass_on(ray, mailbox, report)
            for one in done:
                yield _result(ray, one)
    finally:
        for one in waiting:
            with suppress(Exception):  # it has ended, or its node
                ray.cancel(one)
        _pass_on(ray, mailbox, report)
        with suppress(Exception):
            ray.kill(mailbox)


def _connect(address: str) -> Any:
    """The library, connected to the cluster, once."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--engine ray needs Ray on every node: pip install -r requirements-ray.txt"
        ) from error
    if not ray.is_initialized():
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": {**_VARIABLES, "PYTHONPATH": paths}},
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except ConnectionError as error:
            raise ConnectionError(
                f"--ray-address={address}: no Ray cluster answers there; start one (ray start "
                "--head), name it with --ray-address, or start one here with --ray-address local"
            ) from error
    return ray


class _Mailbox:
    """Where tasks leave what they report."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def put(self, value: Any) -> None:
        self._values.append(value)

    def take(self) -> list[Any]:
        taken, self._values = self._values, []
        return taken


def _pass_on(ray: Any, mailbox: Any, report: Callable[[Any], None]) -> None:
    """Report what tasks have left; without the mailbox, nothing but reports is lost."""
    with suppress(ray.exceptions.RayError):
        for value in ray.get(mailbox.take.remote(), timeout=30):
            report(value)


def _result(ray: Any, one: Any) -> Any:
    """What a task gave, or its exception as it was raised there."""
    try:
        return ray.get(one)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    except ray.exceptions.RayError as error:
        raise ChildProcessError(
            f"a task was lost {_RETRIES} times (too little memory on its node?): give the same "
            "command again to go on, with fewer --workers"
        ) from error


_known: tuple[Any, Any] = (None, None)  # the last reference that was looked up, and what it was


def _do(shared: list[Any], item: Any, mailbox: Any) -> Any:
    """One item, in a process of the cluster."""
    global _known
    if _known[0] != shared[0]:
        import ray

        _known = shared[0], ray.get(shared[0])
        os.chdir(_known[1][2])  # paths may be relative
    function, state, _ = _known[1]
    return function(state, item, mailbox.put.remote)
