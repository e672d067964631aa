"""Ranks: how this process learns its place, and the collectives that training needs."""

import os
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.base import compat
from pretrain.base.faults import StoppedError
from pretrain.base.launch import end_with_launcher

T = TypeVar("T")
_OF_A_LAUNCHER = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_set_here: set[str] = set()  # of these, by a process without a launcher


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """This process's place among the ranks, and its device."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(timeout_s: float = 3600.0) -> Runtime:
    """Join the process group: gloo on CPU, NCCL on CUDA; one plain process is a group of one.

    timeout_s: of a collective; longer than the watchdog's, which says more about a stall.
    Reads the variables that torchrun, the deepspeed launcher and srun + torchrun set.
    """
    # torch 2.13 renames collectives that DeepSpeed and older torch know by these names only.
    warnings.filterwarnings(
        "ignore", r".*(gather_into|scatter)_tensor. is deprecated", FutureWarning
    )
    if "RANK" not in os.environ:
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        os.environ.update(alone)
        _set_here.update(alone)
    else:
        lacking = [name for name in _OF_A_LAUNCHER if name not in os.environ]
        if lacking:
            raise ValueError(
                f"RANK={os.environ['RANK']} is set, {', '.join(lacking)} are not: start the ranks "
                "by torchrun, or unset RANK to train as one process"
            )
        end_with_launcher()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        _share_cores()
        compat.keep_freed_memory()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        except dist.DistNetworkError as error:
            raise OSError(
                f"the ranks do not find each other at MASTER_ADDR={os.environ['MASTER_ADDR']}, "
                f"MASTER_PORT={os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}): if "
                "another job has that port, give another (torchrun --master_port N, or "
                "--standalone)"
            ) from error
    return Runtime(
        rank=dist.get_rank(),
        local_rank=local_rank,
        world_size=dist.get_world_size(),
        device=device,
    )


def _share_cores() -> None:
    """Give each rank its share of the cores; the deepspeed launcher alone does not."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores_of_a_rank())


def ranks_on_node() -> int:
    """Ranks on this node, as torchrun (LOCAL_WORLD_SIZE) or deepspeed (LOCAL_SIZE) says; without
    either, all of them."""
    told = [os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")]
    return next((int(ranks) for ranks in told if ranks), 1)


def cores_of_a_rank() -> int:
    """This rank's share of the cores that its node lets it use, at least 1."""
    return max(len(os.sched_getaffinity(0)) // ranks_on_node(), 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop() -> None:
    """Leave the process group, so that the process ends without a warning, and the environment as
    it was: a process that is started from here is no rank."""
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in _set_here:
        os.environ.pop(name, None)
    _set_here.clear()


def barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum of a small vector over all ranks."""
    total = values.clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean of a small fp32 vector over all ranks."""
    return sum_over_ranks(values) / dist.get_world_size()


def all_ranks(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank. For small values. Collective."""
    if dist.get_world_size() == 1:
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def run_together(action: Callable[[], T]) -> T:
    """action() on every rank; where it fails on any, the same StoppedError on all. Collective.

    For checks: ValueError, OSError and RuntimeError are told to all. `action` has no collective.
    """
    result, mistake = None, None
    try:
        result = action()
    except (ValueError, OSError, RuntimeError) as error:
        mistake = " ".join(str(error).split())
        if os.environ.get("PRETRAIN_TRACEBACK"):
            traceback.print_exc()
    found = [one for one in all_ranks(mistake) if one is not None]
    if found:
        raise StoppedError(found[0])
    return cast(T, result)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    box = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward is a SUM reduce-scatter: the true gradient of the gather."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(rows.shape[0] * dist.get_world_size(), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        world = dist.get_world_size()
        own = grad.new_empty(grad.shape[0] // world, *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad, op=dist.ReduceOp.SUM)
        return own


def gather_rows(rows: Tensor) -> Tensor:
    """(B, …) of each rank → (G, …) of all ranks in rank order, with the gradient through it.

    Each rank's gradient becomes the SUM over ranks of what their losses say about its rows; with
    losses over local rows and DeepSpeed's mean over ranks, that is the global batch's gradient.
    """
    return rows if dist.get_world_size() == 1 else _GatherRows.apply(rows)
