"""The loader: this rank's batches from a position on, built ahead in background threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pretrain.checks import check_positive
from pretrain.data.ahead import ReadAhead, worthwhile
from pretrain.data.collate import Batch, Collator
from pretrain.data.order import SampleOrder


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How batches are built ahead of the training step."""

    workers: int = 2
    """Background threads that build batches; 0 builds each batch in the training thread."""
    prefetch_batches: int = 2
    """Batches built ahead per worker."""
    read_ahead: bool = True
    """Fetch the next shuffle window's pieces of the disk while this one is trained on, where
    windows fit in memory or data.shards.cache is set. Needs workers."""

    def __post_init__(self) -> None:
        check_positive({"data.loader.prefetch_batches": self.prefetch_batches})
        if self.workers < 0:
            raise ValueError(f"data.loader.workers={self.workers}: it must be 0 or more")


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
) -> Iterator[Batch]:
    """This rank's slice of each global batch for positions start…end of the stream, in order.

    Global batch k holds positions start + k * global_batch_samples and on; the order says which of
    them are whose. Equal for any number of workers.
    """
    starts = range(start, end, global_batch_samples)

    ahead = None
    if options.read_ahead and options.workers and worthwhile(collator.dataset, order, world_size):
        ahead = ReadAhead(collator.dataset, order, rank, world_size)

    def build(first: int) -> Batch:
        if ahead is not None:
            ahead.at(first)
        positions = order.share(first, global_batch_samples, rank, world_size)
        return collator(positions, order.rows(positions))

    if options.workers == 0:
        yield from map(build, starts)
        return
    most = options.workers * options.prefetch_batches
    pool = ThreadPoolExecutor(options.workers, thread_name_prefix="loader")
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
