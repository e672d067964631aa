"""The pre-flight of a job: every node is looked at, and a bad one is named."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.base.exit_codes import FAILED, REFUSED
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.recipe.recipe import Recipe

# Nodes import torch from one disk, some of them much later than others.
_PATIENCE_S = 180.0
_COLLECTIVE_S = 120.0
_ALL_REDUCE_MIB = 64
_ALL_REDUCES = 5
# NCCL keeps a few buffers of 10 MB for each pair of GPUs in there; containers begin with 64 MB.
_SHM_MIB = 512
# More means that somebody else's process is on it.
_FREE_GPU_SHARE = 0.9
# Builds, caches and network disks take a file from the future for a damaged one.
_CLOCK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """Where this process is among the job's nodes."""

    rank: int
    nodes: int
    master: str
    port: int
    ranks_per_node: int

    @property
    def host(self) -> str:
        return os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # as Slurm names it


def check_nodes(recipe: Recipe, _: str) -> int:
    """Look at this node, hear of the others, and sum over all of them; returns the exit code."""
    place = Node(
        rank=int(os.environ.get("SLURM_PROCID", "0")),
        nodes=int(os.environ.get("SLURM_NTASKS", "1")),
        master=os.environ.get("MASTER_ADDR", "127.0.0.1"),
        port=int(os.environ.get("MASTER_PORT", "0")),
        ranks_per_node=int(os.environ.get("RANKS_PER_NODE", "1")),
    )
    seen, faults = look(recipe, place.ranks_per_node)
    if place.nodes == 1:
        return _say([(place.host, seen, faults)])
    try:
        store = dist.TCPStore(
            place.master,
            place.port,
            is_master=place.rank == 0,
            timeout=timedelta(seconds=_PATIENCE_S),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        _complain(place.host, [f"cannot reach {place.master}:{place.port}: {_one_line(error)}"])
        return REFUSED
    store.set(f"node{place.rank}", json.dumps((place.host, seen, faults)))
    if place.rank == 0:
        store.set("verdict", str(_say(_all_nodes(store, place))))
    store.wait(["verdict"], timedelta(seconds=2 * _PATIENCE_S))
    code = int(store.get("verdict")) or _all_reduce(store, place)
    store.set(f"left{place.rank}", "")
    if place.rank == 0:  # the store goes with this process
        _await_keys(store, [f"left{rank}" for rank in range(place.nodes)], 10.0)
    return code


def look(recipe: Recipe, ranks: int) -> tuple[str, list[str]]:
    """What this node is like, in words, and what is wrong with it."""
    faults: list[str] = []
    seen = [_look_at_gpus(ranks, faults)]
    _look_at_data(recipe, faults)
    seen.append(_look_at_run_folder(recipe.run_dir, faults))
    shm_mib = shutil.disk_usage("/dev/shm").free >> 20
    seen.append(f"/dev/shm {shm_mib / 1024:.1f} GiB free")
    if shm_mib < _SHM_MIB:
        faults.append(
            f"/dev/shm has {shm_mib} MiB free, NCCL needs up to {_SHM_MIB}: remount it larger, or "
            "start the container with --shm-size"
        )
    return ", ".join(one for one in seen if one), faults


def _look_at_gpus(ranks: int, faults: list[str]) -> str:
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return "no GPU asked for"
    count = torch.cuda.device_count()
    if count < ranks and (count or "SLURM_GPUS_ON_NODE" in os.environ):
        faults.append(f"{count} GPUs are visible, {ranks} ranks are to run: see nvidia-smi there")
    free_gib = []
    for gpu in range(min(count, ranks)):
        try:
            torch.ones(1024, device=f"cuda:{gpu}").sum().item()
            free, total = torch.cuda.mem_get_info(gpu)
        except RuntimeError as error:
            faults.append(f"GPU {gpu} does not work: {_one_line(error)}")
            continue
        free_gib.append(free / 2**30)
        if free < _FREE_GPU_SHARE * total:
            faults.append(
                f"GPU {gpu} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free: another "
                "process is on it (nvidia-smi)"
            )
    return f"{count} GPUs, at least {min(free_gib):.1f} GiB free" if free_gib else f"{count} GPUs"


def _look_at_data(recipe: Recipe, faults: list[str]) -> None:
    try:
        Dataset(recipe.data.train, recipe.data.tier, shards=recipe.data.shards).close()
    except (OSError, ValueError) as error:
        faults.append(f"data.train={recipe.data.train} cannot be read: {_one_line(error)}")
    for name, directory in recipe.evaluation.sets.items():
        try:
            read_manifest(directory)
        except (OSError, ValueError) as error:
            faults.append(f"evaluation.sets.{name}={directory} cannot be read: {_one_line(error)}")


def _look_at_run_folder(run_dir: Path, faults: list[str]) -> str:
    probe = run_dir / f".preflight-{socket.gethostname()}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        before = time.time()
        probe.write_bytes(b"")
        after = time.time()
        written = probe.stat().st_mtime
        probe.unlink()
    except OSError as error:
        faults.append(f"run_dir={run_dir} cannot be written: {error.strerror}")
        return ""
    skew = max(before - written, written - after, 0.0)
    if skew > _CLOCK_S:
        faults.append(f"its clock is {skew:.0f} s off that of run_dir={run_dir}: see chronyc there")
    return f"clock within {max(skew, 0.1):.1f} s"


def _all_nodes(store: dist.TCPStore, place: Node) -> list[tuple[str, str, list[str]]]:
    """(host, what it is like, its faults) of every node; those not heard of have that for one."""
    found = []
    arrived = _await_keys(store, [f"node{rank}" for rank in range(place.nodes)], _PATIENCE_S)
    for rank, host in enumerate(_hosts(place)):
        if f"node{rank}" in arrived:
            found.append(tuple(json.loads(store.get(f"node{rank}"))))
        else:
            found.append((host, "", [f"not heard of for {_PATIENCE_S:.0f} s"]))
    return found


def _await_keys(store: dist.TCPStore, keys: list[str], timeout_s: float) -> set[str]:
    """Those keys that are set before the time is over."""
    give_up = time.monotonic() + timeout_s
    arrived: set[str] = set()
    while len(arrived) < len(keys) and time.monotonic() < give_up:
        arrived = {key for key in keys if key in arrived or store.check([key])}
        time.sleep(0.05)
    return arrived


def _hosts(place: Node) -> list[str]:
    listed = subprocess.run(
        ["scontrol", "show", "hostnames"], capture_output=True, text=True, check=False
    ).stdout.split()
    if len(listed) == place.nodes:
        return listed
    return [f"node {rank} of {place.nodes}" for rank in range(place.nodes)]


def _say(nodes: list[tuple[str, str, list[str]]]) -> int:
    """Print what was found, a line a node; returns the exit code.

    PRETRAIN_BAD_NODES may name a file for the names of the bad ones. Where several nodes are all
    bad it stays away: the fault is not theirs.
    """
    bad = [host for host, _, faults in nodes if faults]
    for host, seen, faults in nodes:
        if faults:
            _complain(host, faults)
        else:
            print(f"pre-flight: {host}: {seen}", flush=True)
    names = os.environ.get("PRETRAIN_BAD_NODES")
    if names and bad and (len(bad) < len(nodes) or len(nodes) == 1):
        Path(names).write_text(",".join(bad))
    return REFUSED if bad else 0


def _complain(host: str, faults: list[str]) -> None:
    print(f"error: pre-flight: {host} is bad: {'; '.join(faults)}", file=sys.stderr, flush=True)


def _all_reduce(store: dist.TCPStore, place: Node) -> int:
    """A sum over all nodes, by the network that training takes; the main node says how fast."""
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.PrefixStore("sum", store),
            rank=place.rank,
            world_size=place.nodes,
            timeout=timedelta(seconds=_COLLECTIVE_S),
        )
        values = torch.ones(_ALL_REDUCE_MIB << 18, device="cuda" if cuda else "cpu")
        dist.all_reduce(values)  # connects
        wrong = values.ne(float(place.nodes)).any().item()
        values.zero_()
        fastest = min(_seconds(values, cuda) for _ in range(_ALL_REDUCES))
    except RuntimeError as error:
        _complain(place.host, [f"no all-reduce with the other nodes: {_one_line(error)}"])
        return REFUSED
    if wrong:
        _complain(place.host, ["an all-reduce over the nodes gives a wrong sum"])
        return FAILED
    if place.rank == 0:
        # Each node sends and receives this much, whatever the number of nodes (NCCL's busbw).
        moved = 2 * (place.nodes - 1) / place.nodes * (_ALL_REDUCE_MIB << 20)
        print(
            f"pre-flight: all-reduce of {_ALL_REDUCE_MIB} MiB over {place.nodes} nodes, one "
            f"process each: {moved / fastest / 1e9:.2f} GB/s",
            flush=True,
        )
    dist.destroy_process_group()
    return 0


def _seconds(values: torch.Tensor, cuda: bool) -> float:
    begun = time.perf_counter()
    dist.all_reduce(values)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
