"""The loader: this rank's batches from a position on, built ahead by threads or processes."""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from pretrain.base.distributed import cores_of_a_rank
from pretrain.batches.ahead import ReadAhead, worthwhile
from pretrain.batches.collate import Batch, Collator
from pretrain.batches.options import LoaderOptions
from pretrain.batches.order import SampleOrder
from pretrain.batches.workers import Workers

_CPU = torch.device("cpu")
# Of the cores of a rank on a GPU: one gives the GPU its work, one copies and saves.
_CORES_OF_THE_STEP, _MOST_WORKERS = 2, 16


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
    memory, which torch keeps for later batches.
    """
    starts = range(start, end, global_batch_samples)
    count = workers_on(options, device)
    local, side = global_batch_samples // world_size, collator.tokens.image_px

    ahead = workers = None
    if options.read_ahead and count and worthwhile(collator.dataset, order, world_size):
        ahead = ReadAhead(collator.dataset, order, rank, world_size)
    if count and starts and are_processes(options, device):
        workers = Workers(collator, count=count, samples=local)
    make = collator if workers is None else workers.build

    def build(first: int) -> Batch:
        if ahead is not None:
            ahead.at(first)
        positions = order.share(first, global_batch_samples, rank, world_size)
        images = torch.empty(
            (local, side, side, 3), dtype=torch.uint8, pin_memory=device.type == "cuda"
        ).numpy()
        return make(positions, order.rows(positions), images)

    if count == 0:
        yield from map(build, starts)
        return
    most = count * options.prefetch_batches
    pool = ThreadPoolExecutor(count, thread_name_prefix="loader")
    pending: deque[Future[Batch]] = deque()
    try:
        for first in starts:
            pending.append(pool.submit(build, first))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        if ahead is not None:
            ahead.close()
        pool.shutdown(wait=False, cancel_futures=True)
        if workers is not None:
            workers.close()
