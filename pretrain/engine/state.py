"""Masters, moments and averages by parameter name, out of DeepSpeed's layout and into it.

DeepSpeed 0.19.8 lays a group's parameters end to end in flat fp32 tensors, cuts those over the
ranks, and keeps the moments in the optimizer's state of the flat tensor. Three traps: it links
moments to parameters after the first group's first step only, and a new engine has none; ZeRO 3
pads every parameter's part; Muon's momentum at ZeRO 1 and 2 (but in bf16 at ZeRO 1) is one tensor
of the *whole* matrices that lie in this rank's part, also where a matrix is cut. In bf16 DeepSpeed
keeps that momentum in bf16 at ZeRO 2 and 3, so going there from ZeRO 1 rounds it once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

WEIGHT, MOMENTUM, ADAM = "weight", "momentum_buffer", ("exp_avg", "exp_avg_sq")
AVERAGE = "ema"
STEP = "model/step"


@dataclass(frozen=True, kw_only=True)
class ParameterPart:
    """Where this rank keeps elements [first, first + numel) of a flattened parameter."""

    flat: Tensor  # of a group's masters; the optimizer's state is found by it
    at: int  # place of the first element in it, and in moments of its shape
    first: int
    numel: int
    momentum_at: int | None = None  # place of the whole matrix in Muon's momentum, if kept whole


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """A parameter's own shape; ZeRO 3 leaves an empty one in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def set_weights(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Give the fp32 masters these values; the low-precision weights stay."""
    for name, part in _parts(engine).items():
        values = _flatten(weights, name, engine, name)
        _copy(part.flat, part.at, values[part.first : part.first + part.numel])


def flat_masters(engine: Any) -> list[Tensor]:
    """This rank's partitions of the fp32 masters, one a group."""
    return [flat for flat, _, _ in _groups(engine.optimizer)]


def read_weights(engine: Any, locked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight, whole, in fp32 on the CPU, from the masters; those of `locked` from there.
    Collective."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        if name in locked:
            weights[name] = locked[name].clone()
            continue
        master = safe_get_full_fp32_param(parameter)
        if master is None:
            raise RuntimeError(f"DeepSpeed keeps no fp32 master of {name}")
        weights[name] = master.detach().float().cpu().reshape(shape_of(parameter)).clone()
    return weights


@torch.no_grad()
def read_state(
    engine: Any,
    device: torch.device,
    locked: Mapping[str, Tensor],
    averages: Mapping[Tensor, Tensor],
) -> dict[str, Tensor]:
    """This rank's share of the training state, in host memory: `model/KIND/NAME` -> tensor.

    locked: whole weights that the optimizer knows nothing of, in host memory on every rank.
    averages: of each flat master partition, its average; empty on all ranks where none is kept.
    Whole parameters are shared out over the ranks by bytes. Collective.
    """
    states, parts, step = engine.optimizer.optimizer.state, _parts(engine), _step(engine)
    rank, world = dist.get_rank(), dist.get_world_size()
    named = dict(engine.module.named_parameters())
    owners = _owners({name: shape_of(p) for name, p in named.items()}, world)
    found = {STEP: torch.tensor(step)} if rank == 0 else {}
    for name, parameter in named.items():
        if name in locked:
            if owners[name] == rank:
                found[f"model/{WEIGHT}/{name}"] = locked[name]
            continue
        kinds, shape = _kinds(parameter, averages), shape_of(parameter)
        # New memory: what is handed out is a copy, and later steps do not change it.
        whole = torch.zeros(len(kinds), shape_numel(shape), device=device)
        if name in parts:
            part = parts[name]
            for row, kind in zip(whole, kinds, strict=True):
                own = _own(part, kind, states, averages, step, name)
                row[part.first : part.first + part.numel] = own
        if world > 1:  # as integers: a sum with zeros that keeps every bit
            dist.reduce(whole.view(torch.int32), dst=owners[name])
        if owners[name] == rank:
            for row, kind in zip(whole, kinds, strict=True):
                found[f"model/{kind}/{name}"] = row.cpu().reshape(shape)
    return found


@torch.no_grad()
def load_state(
    engine: Any, tensors: Mapping[str, Tensor], averages: Mapping[Tensor, Tensor]
) -> None:
    """Give an engine that has made no step, and its averages, what `read_state` of all ranks gave,
    whatever their number, ZeRO stage and offload. Collective."""
    optimizer = engine.optimizer
    states, step = optimizer.optimizer.state, int(tensors[STEP])
    for flat, parameters, momentum_numel in _groups(optimizer):
        state = states[flat]
        for kind in _moments(parameters[0]):
            numel = momentum_numel if kind == MOMENTUM else flat.numel()
            if kind not in state:
                state[kind] = flat.new_zeros(numel)
        if ADAM[0] in state:
            state["step"] = _step_as_kept(optimizer.optimizer, flat, step)
    named = dict(engine.module.named_parameters())
    for name, part in _parts(engine).items():
        for kind in _kinds(named[name], averages):
            values = _flatten(tensors, f"model/{kind}/{name}", engine, name)
            if kind == MOMENTUM and part.momentum_at is not None:
                _copy(states[part.flat][kind], part.momentum_at, values)
            else:
                own = values[part.first : part.first + part.numel]
                _copy(_flat(part, kind, states, averages), part.at, own)
    _refresh_weights(optimizer)


@torch.no_grad()
def load_locked(
    engine: Any, tensors: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Give the weights of these names, which are not trained, what `read_state` of all ranks gave;
    returns them whole. Collective."""
    found = {}
    for name in names:
        found[name] = _flatten(tensors, f"model/{WEIGHT}/{name}", engine, name)
        parameter = engine.module.get_parameter(name)
        found[name] = found[name].reshape(shape_of(parameter))
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(found[name])
    return found


def shape_numel(shape: tuple[int, ...]) -> int:
    """How many elements a tensor of this shape has."""
    return torch.Size(shape).numel()


def _moments(parameter: Tensor) -> tuple[str, ...]:
    return (MOMENTUM,) if getattr(parameter, "use_muon", False) else ADAM


def _kinds(parameter: Tensor, averages: Mapping[Tensor, Tensor]) -> tuple[str, ...]:
    return (WEIGHT, *_moments(parameter), *((AVERAGE,) if averages else ()))


def _owners(shapes: dict[str, tuple[int, ...]], world_size: int) -> dict[str, int]:
    """The rank that writes each parameter: the largest first, each to whoever has least."""
    numels = {name: shape_numel(shape) for name, shape in shapes.items()}
    loads, owners = [0] * world_size, {}
    for name in sorted(numels, key=lambda name: (-numels[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += numels[name]
    return owners


def _groups(optimizer: Any) -> Iterator[tuple[Tensor, list[Any], int]]:
    """(flat masters of this rank, the group's parameters, numel of its momentum under Muon)."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        flats, groups = optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups
        numels = [flat.numel() for flat in flats]
    elif isinstance(optimizer, BF16_Optimizer):
        flats, groups = optimizer.fp32_groups_flat_partition, optimizer.bf16_groups
        numels = [flat.numel() for flat in flats]
    else:
        flats, groups = optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups
        numels = [sum(p.numel() for p in here) for here in optimizer.params_in_partition]
    yield from zip(flats, groups, numels, strict=True)


def _parts(engine: Any) -> dict[str, ParameterPart]:
    """Every parameter of which this rank keeps some elements, by name."""
    optimizer, rank = engine.optimizer, dist.get_rank()
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    whole_at: dict[int, int] = {}
    if not isinstance(optimizer, (DeepSpeedZeroOptimizer_Stage3, BF16_Optimizer)):
        for here in optimizer.params_in_partition:
            at = 0
            for parameter in here:
                whole_at[id(parameter)] = at
                at += parameter.numel()
    found = {}
    for flat, parameters, _ in _groups(optimizer):
        for parameter in parameters:
            if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
                _, at, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
                first = rank * padded
                numel = min(padded, parameter.ds_numel - first)
            elif parameter._hp_mapping is None:
                continue
            else:
                link = parameter._hp_mapping
                at, numel = link.hp_fragment_address.start, link.hp_fragment_address.numel
                first = link.lp_fragment_address.start
            if numel > 0:
                found[names[id(parameter)]] = ParameterPart(
                    flat=flat,
                    at=at,
                    first=first,
                    numel=numel,
                    momentum_at=whole_at.get(id(parameter)),
                )
    return found


def _flat(part: ParameterPart, kind: str, states: Any, averages: Mapping[Tensor, Tensor]) -> Tensor:
    """What keeps a kind of a parameter's values in the places of its masters."""
    if kind == WEIGHT:
        return part.flat
    return averages[part.flat] if kind == AVERAGE else states[part.flat][kind]


def _own(
    part: ParameterPart,
    kind: str,
    states: Any,
    averages: Mapping[Tensor, Tensor],
    step: int,
    name: str,
) -> Tensor:
    """This rank's elements of a parameter's master, average or moment."""
    if kind in (WEIGHT, AVERAGE):
        return _flat(part, kind, states, averages)[part.at : part.at + part.numel]
    moment = states[part.flat].get(kind) if part.flat in states else None
    if moment is None:
        if step > 0:
            raise RuntimeError(f"DeepSpeed keeps no {kind} of {name} after {step} steps")
        return part.flat.new_zeros(part.numel)
    at = part.at
    if kind == MOMENTUM and part.momentum_at is not None:
        at = part.momentum_at + part.first
    return moment.view(-1)[at : at + part.numel]


def _step(engine: Any) -> int:
    """Updates that AdamW has made; the same of every group, as an update is made by all or none."""
    states = engine.optimizer.optimizer.state.values()
    found = {int(state["step"]) for state in states if "step" in state}
    if len(found) > 1:
        raise RuntimeError(f"groups of parameters are at different steps: {sorted(found)}")
    return found.pop() if found else 0


def _step_as_kept(optimizer: torch.optim.Optimizer, flat: Tensor, step: int) -> Tensor | int:
    """AdamW counts in a tensor, on the device if fused; DeepSpeed's MuonWithAuxAdam in an int."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return step
    device = flat.device if optimizer.defaults["fused"] else "cpu"
    return torch.tensor(float(step), dtype=torch.float32, device=device)


def _flatten(tensors: Mapping[str, Tensor], key: str, engine: Any, name: str) -> Tensor:
    """A whole value, flat. RuntimeError where it is another parameter's."""
    value = tensors[key]
    expected = shape_of(engine.module.get_parameter(name))
    if tuple(value.shape) != expected:
        raise RuntimeError(f"{key} has shape {tuple(value.shape)} instead of {expected}")
    return value.flatten()


def _copy(flat: Tensor, at: int, values: Tensor) -> None:
    flat.data.view(-1)[at : at + values.numel()].copy_(values)


def _refresh_weights(optimizer: Any) -> None:
    """The weights that the model computes with, from the masters, as a step leaves them."""
    if not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.update_lp_params()
        return
    optimizer.checkpoint_event_prologue()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    optimizer.checkpoint_event_epilogue()
