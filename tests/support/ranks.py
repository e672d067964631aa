"""Running a function on several gloo ranks of this machine, and getting their results."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from forkserver import CONTEXT

TIMEOUT_S = 300


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """function(rank, *arguments) on each of world_size processes, joined as a gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _one_rank,
            args=(function, world_size, folder, arguments),
            nprocs=world_size,
            join=False,
            start_method=CONTEXT.get_start_method(),
        )
        deadline = time.monotonic() + TIMEOUT_S
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} on {world_size} ranks: over {TIMEOUT_S} s")
        return [torch.load(Path(folder) / f"{r}.pt", weights_only=False) for r in range(world_size)]


def _one_rank(
    rank: int, function: Callable[..., Any], world_size: int, folder: str, arguments: tuple
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1"
    )
    os.environ.update(LOCAL_WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    from pretrain.base import distributed

    store = torch.distributed.FileStore(f"{folder}/store", world_size)
    # DeepSpeed reads these even when the group is already there.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29555")
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        distributed.stop()
