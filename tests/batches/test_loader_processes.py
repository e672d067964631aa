"""Batches built by processes beside the training process."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from collators import collator
from dataset_copies import keep_weights

from pretrain.base import progress
from pretrain.base.distributed import ranks_on_node
from pretrain.batches.collate import Collator, join
from pretrain.batches.loader import are_processes, batches, workers_on
from pretrain.batches.options import LoaderOptions
from pretrain.batches.order import SampleOrder
from pretrain.batches.slots import Slots
from pretrain.batches.workers import Workers
from pretrain.dataset.sample_weights import open_weights

PROCESSES = LoaderOptions(kind="processes", workers=2)
ROOT = Path(__file__).resolve().parents[2]
ONE = np.arange(4)


def stream(collate: Collator, options: LoaderOptions, end: int = 64):
    return batches(
        collator=collate,
        order=SampleOrder(samples=len(collate.dataset), seed=0, weights=collate.weights),
        start=0,
        end=end,
        global_batch_samples=16,
        rank=0,
        world_size=2,
        options=options,
    )


def workers_of(collate: Collator, count: int = 1) -> tuple[Workers, Slots]:
    """Processes that build batches of four, and where they write."""
    px = collate.tokens.image_px
    slots = Slots(count=1, shape=(4, px, px, 3), is_shared=True, is_pinned=False)
    return Workers(collate, count=count, slots=slots), slots


def servers() -> list[psutil.Process]:
    """Of this process's loaders."""
    children = psutil.Process().children()
    return [one for one in children if "pretrain.batches.workers" in one.cmdline()]


def test_processes_build_what_threads_build_and_leave_nothing(tiny_dataset):
    collate = collator(tiny_dataset)
    by_threads = list(stream(collate, LoaderOptions(kind="threads", workers=2)))
    by_processes = list(stream(collate, PROCESSES))
    assert len(by_processes) == len(by_threads) == 4
    for one, other in zip(by_threads, by_processes, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_equal(other[name], value, err_msg=name)
    assert not servers()


def test_weights_are_mapped_by_the_processes_too(copy):
    samples = len(collator(copy).dataset)
    weights = np.random.default_rng(0).random(samples, np.float32)
    keep_weights(copy, "some", weights)
    collate = collator(copy)
    collate.weights = open_weights(copy, "some", collate.dataset.manifest)
    # A damaged sample is replaced by the weights, in the process that built it.
    shard = copy / collate.dataset.manifest.tiers["full"].shards[0].file
    content = bytearray(shard.read_bytes())
    for row in range(0, 30):
        content[int(collate.dataset.index["jpg"]["offset"][row]) + 20] ^= 255
    shard.write_bytes(content)
    pair = [list(stream(collate, kind)) for kind in (LoaderOptions(workers=0), PROCESSES)]
    assert sum(batch["replaced"].get("crc_mismatch", 0) for batch in pair[0]) > 0
    for one, other in zip(*pair, strict=True):
        np.testing.assert_equal(other, one)


def test_a_fault_in_a_process_is_raised_here_and_the_next_batch_is_built(copy):
    collate = collator(copy)
    workers, slots = workers_of(collate)
    shard = Path(collate.dataset.shards[0])
    shard.rename(shard.with_suffix(".away"))
    with pytest.raises(OSError, match=r"00000\.tar could not be read.*start the same command"):
        workers.build(ONE, ONE, 0, 0)
    shard.with_suffix(".away").rename(shard)
    # In two parts, out of order: each has its place.
    late = workers.build(ONE[1:], ONE[1:], 0, 1)
    again = join([workers.build(ONE[:1], ONE[:1], 0, 0), late], ONE, slots.pictures(0))
    np.testing.assert_equal(again, collate(ONE, ONE))
    workers.close()


def test_a_process_that_was_killed_is_told_of_in_one_line(tiny_dataset, capfd):
    collate = collator(tiny_dataset)
    workers, _ = workers_of(collate)
    workers.build(ONE, ONE, 0, 0)
    (server,) = servers()
    (worker,) = server.children()
    assert not [m.path for m in worker.memory_maps() if m.path.startswith("/dev/shm")]
    worker.kill()
    with pytest.raises(RuntimeError, match=r"lower data\.loader\.workers"):
        workers.build(ONE, ONE, 0, 0)
    server.wait(10)
    assert f"(pid {worker.pid}) ended by signal SIGKILL" in capfd.readouterr().err
    workers.close()


def test_a_stopped_run_is_not_stopped_by_its_loader(tiny_dataset):
    """Slurm and terminals signal every process of a job; only the training process decides."""
    collate = collator(tiny_dataset)
    workers, _ = workers_of(collate)
    workers.build(ONE, ONE, 0, 0)
    (server,) = servers()
    for process in (server, *server.children()):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            process.send_signal(number)
    workers.build(ONE, ONE, 0, 0)
    workers.close()
    assert not psutil.pid_exists(server.pid)


TRAIN = """
import sys, time
from pathlib import Path
import numpy as np
sys.path[:0] = {paths!r}
import psutil
from test_loader_processes import ONE, collator, workers_of
collate = collator(Path({dataset!r}))
workers, _ = workers_of(collate, 2)
workers.build(ONE, ONE, 0, 0)
family = []
while len(family) < 3:  # the second worker may not have been needed yet
    family = [p.pid for p in psutil.Process().children(recursive=True)]
print(*family, flush=True)
time.sleep(60)
"""


def test_killing_the_training_process_ends_all(tiny_dataset):
    code = TRAIN.format(
        paths=[str(ROOT / one) for one in ("tests/batches", "tests/support", ".")],
        dataset=str(tiny_dataset),
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    family = [int(pid) for pid in run.stdout.readline().split()]
    assert len(family) == 3  # the server and its two workers
    run.kill()
    run.wait()
    run.stdout.close()
    end = time.monotonic() + 20
    while alive := [pid for pid in family if psutil.pid_exists(pid)]:
        assert time.monotonic() < end, f"{alive} live on"
        time.sleep(0.05)


def test_the_watchdog_sees_what_a_process_reads(copy):
    """A pipe in a shard's place: opening it waits for a writer, as a hung disk does."""
    collate = collator(copy)
    shard = Path(collate.dataset.shards[0])
    shard.unlink()
    os.mkfifo(shard)
    workers, _ = workers_of(collate)
    built = stream_in_background(workers, collate)
    end = time.monotonic() + 20
    while progress.longest_read() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    read = progress.longest_read()
    assert read is not None and read[0] == str(shard) and 0 <= read[1] < 20
    workers.close()
    assert progress.longest_read() is None
    built.join(10)
    assert not built.is_alive()


def stream_in_background(workers, collate):
    def build():
        with suppress(RuntimeError):
            workers.build(ONE, ONE, 0, 0)

    thread = threading.Thread(target=build)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_memory_is_used_again_once_a_batch_is_let_go_and_never_before(tiny_dataset, kind):
    """More batches than there is memory for, all held, one in four, or none."""
    options = LoaderOptions(kind=kind, workers=2, prefetch_batches=1)
    wanted = list(stream(collator(tiny_dataset), LoaderOptions(workers=0), end=256))
    for held_every in (1, 4, 100):
        held, places = {}, set()
        for number, batch in enumerate(stream(collator(tiny_dataset), options, end=256)):
            np.testing.assert_equal(batch, wanted[number])
            places.add(batch["images"].ctypes.data)
            if number % held_every == 0:
                held[number] = batch["images"][1:]  # a view holds it as well
        for number, images in held.items():
            np.testing.assert_equal(images, wanted[number]["images"][1:])
    assert len(places) <= 4 + 3, f"{len(places)} batches of memory where one was held at a time"


def test_a_batch_is_built_by_all_workers_together(tiny_dataset):
    collate = collator(tiny_dataset)
    built = []

    class Watched(Collator):
        def __call__(self, positions, rows, images=None):
            built.append(len(rows))
            return super().__call__(positions, rows, images)

    watched = Watched(**{name: getattr(collate, name) for name in Collator.__dataclass_fields__})
    order = SampleOrder(samples=len(collate.dataset), seed=0)
    common = dict(order=order, start=0, end=2000, rank=0, world_size=1)
    options = LoaderOptions(workers=3, prefetch_batches=1)
    whole = next(batches(collator=watched, global_batch_samples=250, options=options, **common))
    assert sorted(built[:3]) == [82, 84, 84]
    np.testing.assert_equal(whole, collate(whole["positions"], order.rows(whole["positions"])))


def test_the_number_of_workers_follows_the_device_and_the_node(monkeypatch):
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_on_node() == 1
    assert workers_on(LoaderOptions(), cpu) == 2 and workers_on(LoaderOptions(), cuda) == 16
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_SIZE", "8")  # the deepspeed launcher's
    assert ranks_on_node() == 8 and workers_on(LoaderOptions(), cuda) == 10
    assert workers_on(LoaderOptions(workers=3), cuda) == 3
    assert are_processes(LoaderOptions(), cuda) and not are_processes(LoaderOptions(), cpu)
    assert not are_processes(LoaderOptions(kind="threads"), cuda)


def test_a_lost_process_leaves_nobody_waiting(tiny_dataset):
    """Of two workers one is killed: threads that ask again fail at once."""
    workers, _ = workers_of(collator(tiny_dataset), 2)
    while not servers():  # a process that has just begun has no command line yet
        time.sleep(0.05)
    (server,) = servers()
    while len(server.children()) < 2:
        time.sleep(0.05)
    for worker in server.children():
        worker.kill()
    for _ in range(4):
        with pytest.raises(RuntimeError, match=r"lower data\.loader\.workers"):
            workers.build(ONE, ONE, 0, 0)
    workers.close()
