"""The loader: this rank's batches from a position on, built ahead by threads or processes.

A batch is built in parts, each by one worker, into the batch's own memory: so the first is there as
soon as the workers together can make it, and no more batches are in memory than are asked for.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.base.distributed import cores_of_a_rank
from pretrain.batches.ahead import ReadAhead, worthwhile
from pretrain.batches.collate import Batch, Collator, join
from pretrain.batches.options import LoaderOptions
from pretrain.batches.order import SampleOrder
from pretrain.batches.slots import Slots
from pretrain.batches.workers import Workers

_CPU = torch.device("cpu")
# Of the cores of a rank on a GPU: one gives the GPU its work, one copies and saves.
_CORES_OF_THE_STEP, _MOST_WORKERS = 2, 16
# Of a batch, by one worker. Below the first the arithmetic of a part costs more than a twentieth of
# its pictures; above the second the last part is waited for.
_LEAST_PART, _LARGEST_PART = 64, 512
# Batches that the step holds: one in use, one on its way to the device, one just handed out.
_HELD = 3


def workers_on(options: LoaderOptions, device: torch.device) -> int:
    """How many build batches for this device."""
    if options.workers is not None:
        return options.workers
    if device.type != "cuda":
        return 2
    return min(max(cores_of_a_rank() - _CORES_OF_THE_STEP, 1), _MOST_WORKERS)


def are_processes(options: LoaderOptions, device: torch.device) -> bool:
    """Whether workers for this device are processes."""
    on_gpu = device.type == "cuda" and sys.platform == "linux"
    return options.kind == "processes" or (options.kind == "auto" and on_gpu)


# (positions, rows) of a batch.
_Asked = Future[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A batch whose parts are being built."""

    slot: int
    rows: NDArray[np.int64]  # as the order has them
    parts: list[Future[Batch]]


def batches(
    *,
    collator: Collator,
    order: SampleOrder,
    start: int,
    end: int,
    global_batch_samples: int,
    rank: int,
    world_size: int,
    options: LoaderOptions,
    device: torch.device = _CPU,
) -> Iterator[Batch]:
    """This rank's slice of each global batch for positions start…end of the stream, in order.

    Global batch k holds positions start + k * global_batch_samples and on; the order says which of
    them are whose. Equal for any number and kind of workers. On a GPU's rank pictures lie in pinned
    memory. The memory of a batch is another's once nobody holds its pictures.
    """
    starts = range(start, end, global_batch_samples)
    count = workers_on(options, device)
    local, side = global_batch_samples // world_size, collator.tokens.image_px

    part_samples = min(max(-(-local // max(count, 1)), _LEAST_PART), _LARGEST_PART)
    parts_of_all = -(-local // part_samples)
    # Two parts a worker: one at work, one waiting.
    most = max(options.prefetch_batches, -(-2 * count // parts_of_all)) if count else 0
    most = min(most, len(starts))
    ahead = workers = None
    if options.read_ahead and count and worthwhile(collator.dataset, order, world_size):
        ahead = ReadAhead(collator.dataset, order, rank, world_size)
    slots = Slots(
        count=most + _HELD,
        shape=(local, side, side, 3),
        is_shared=(by_processes := bool(count and starts and are_processes(options, device))),
        is_pinned=device.type == "cuda",
    )
    if by_processes:
        workers = Workers(collator, count=count, slots=slots)
    pool = ThreadPoolExecutor(max(count, 1), thread_name_prefix="loader")

    def ask(first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if ahead is not None:
            ahead.at(first)
        positions = order.share(first, global_batch_samples, rank, world_size)
        return positions, order.rows(positions)

    def begin(asked: _Asked, slot: int) -> _Begun:
        positions, rows = asked.result()
        parts = []
        for at in range(0, local, part_samples):
            part = slice(at, at + part_samples)
            of_part = positions[part], rows[part]
            if workers is None:
                parts.append(pool.submit(collator, *of_part, slots.pictures(slot)[part]))
            else:
                parts.append(pool.submit(workers.build, *of_part, slot, at))
        return _Begun(slot=slot, rows=rows, parts=parts)

    def finish(begun: _Begun) -> Batch:
        parts = [part.result() for part in begun.parts]
        if begun.slot == slots.spare:
            return join(parts, begun.rows, slots.pictures(slots.spare).copy())
        return join(parts, begun.rows, slots.hand_out(begun.slot))

    pending: deque[_Begun] = deque()
    try:
        asked = pool.submit(ask, starts[0]) if starts else None
        for first in starts:
            while (slot := slots.take()) is None and pending:
                yield finish(pending.popleft())
            # Whoever holds every slot gets its own copy of this batch: the spare is for the next.
            assert asked is not None
            pending.append(begin(asked, slots.spare if slot is None else slot))
            # Which samples come next is told by a thread: it can take milliseconds of the step's.
            following = first + global_batch_samples
            asked = pool.submit(ask, following) if following < end else None
            if slot is None or len(pending) > most:
                yield finish(pending.popleft())
        while pending:
            yield finish(pending.popleft())
    finally:
        if ahead is not None:
            ahead.close()
        pool.shutdown(wait=False, cancel_futures=True)
        if workers is not None:
            workers.close()
