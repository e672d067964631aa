"""Reading ahead: what the next shuffle window needs is fetched while this one is trained on.

A window's samples come in random order, but its chunks are pieces of 1,024 neighbours on the disk.
Asked for as such, and early, they come at the speed of a sequential read; a cache of shards far
away fills in the same way.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import psutil

from pretrain.base.distributed import ranks_on_node
from pretrain.batches.order import SampleOrder, Window
from pretrain.dataset.reader import Dataset

_THREADS = 4  # a network disk or an object store needs several requests at once


@dataclass(kw_only=True)
class _Asked:
    """A window of which some chunks have been asked for."""

    window: Window
    stretches: list[tuple[int, int]]
    count: int = 0

    def up_to(self, share: float) -> Iterator[tuple[int, int]]:
        """Chunks not asked for yet, up to a share of the window."""
        while self.count < share * len(self.stretches):
            yield self.stretches[self.count]
            self.count += 1


class ReadAhead:
    """Asks for a rank's chunks: all of the window it is in, and of the next one as large a share
    as of this one is past."""

    def __init__(self, dataset: Dataset, order: SampleOrder, rank: int, ranks: int) -> None:
        self._dataset, self._order, self._rank, self._ranks = dataset, order, rank, ranks
        self._asked: dict[int, list[_Asked]] = {}  # by lane: this window, and the next
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ahead")
        self._closed = threading.Event()

    def at(self, position: int) -> None:
        """The batch at this position is being built. Returns at once."""
        with self._lock, suppress(RuntimeError):  # closed
            for window in self._order.windows(position, self._rank, self._ranks):
                this, following = self._windows_from(window)
                for first, stop in (*this.up_to(1.0), *following.up_to(window.past)):
                    self._pool.submit(self._fetch, first, stop)

    def _windows_from(self, window: Window) -> list[_Asked]:
        known = self._asked.get(window.lane, [])
        found = []
        for wanted in (window, self._order.following(window)):
            place = (wanted.epoch, wanted.number)
            same = [one for one in known if (one.window.epoch, one.window.number) == place]
            found += same or [_Asked(window=wanted, stretches=self._order.stretches(wanted))]
        self._asked[window.lane] = found
        return found

    def _fetch(self, first: int, stop: int) -> None:
        if not self._closed.is_set():
            with suppress(OSError):  # the read itself will try again, and say what is wrong
                self._dataset.read_ahead(first, stop, self._closed)

    def close(self) -> None:
        """Ask for no more, and give up what is under way."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def worthwhile(dataset: Dataset, order: SampleOrder, ranks: int) -> bool:
    """Whether shards come through a cache, or two windows of all ranks on this node fit in half of
    its memory: else what is read ahead would be gone before it is needed."""
    if dataset.cache_bytes is not None:
        return True
    sample_bytes = sum(tier.bytes for tier in dataset.tiers_read) / len(dataset)
    lanes = min(order.lanes, -(-order.lanes // ranks) * ranks_on_node())
    window = order.window_samples * lanes / order.lanes
    return 2 * window * sample_bytes < psutil.virtual_memory().total / 2


def cache_shortage(
    dataset: Dataset, order: SampleOrder, position: int, rank: int, ranks: int
) -> str | None:
    """A warning where the node's copies of shards have no room for what its ranks need of this
    shuffle window and the next: then they are fetched again and again. None where all is well.

    Reckoned from this rank's lanes, as if the node's other ranks had as much of their own.
    """
    if dataset.cache_bytes is None:
        return None
    windows = order.windows(position, rank, ranks)
    wanted = {
        shard
        for window in (*windows, *map(order.following, windows))
        for first, stop in order.stretches(window)
        for shard in dataset.shards_of(first, stop)
    }
    own = sum(tier.shards[shard].bytes for tier in dataset.tiers_read for shard in wanted)
    if order.lanes >= ranks:
        own *= ranks_on_node()
    needed = min(own, sum(tier.bytes for tier in dataset.tiers_read))
    if needed <= dataset.cache_bytes:
        return None
    return (
        f"warning: data.shards.cache_gib={dataset.cache_bytes / 2**30:.3g}, this node's ranks need "
        f"{needed / 2**30:.3g} GiB of shards for two shuffle windows: what was removed is fetched "
        "again; raise it, or lower data.shuffle_window_samples"
    )
