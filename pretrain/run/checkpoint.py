"""Checkpoints: complete or absent. Written aside, synced, hashed by the writing ranks, renamed.

A checkpoint inside a stage holds the training state by parameter name, of any number of ranks and
any ZeRO stage, as safetensors; one at a stage's end only says where the run stands, because the
next stage starts from the stage's weights. Nothing in it is code.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pretrain.distributed import Runtime, all_ranks, barrier
from pretrain.files import (
    file_sha256,
    rename_durably,
    why_not_written,
    write_durably,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.engine.engine import Engine

STATE_FILE = "state.json"
_ASIDE, _DAMAGED = ".incomplete", ".damaged"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; with the recipe and the seed, all that a resume needs to know."""

    stage: int = 0  # index of the stage that goes on
    stage_step: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in the whole job
    samples_seen: int = 0  # position in the sample stream
    dataset_fingerprint: str = ""
    weights_sha256: str = ""
    replaced: dict[str, int] = field(default_factory=dict)  # unusable samples by reason, all ranks
    skipped: int = 0  # updates that were not made because a number was not finite
    skipped_in_a_row: int = 0

    @property
    def begun(self) -> int:
        """How many stages have begun."""
        return self.stage + (self.stage_step > 0)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    tag: str
    state: RunState
    fixed: dict[str, Any] | None  # what the run's stages have fixed; None before November 2026
    # Of one inside a stage up to November 2026, which holds DeepSpeed's files: the only shape that
    # can load it, as (ranks, ZeRO stage, whether the optimizer is offloaded).
    deepspeed_shape: tuple[int, int, bool] | None = None


def save(
    engine: "Engine | None",
    folder: Path,
    state: RunState,
    fixed: dict[str, Any],
    *,
    keep: int,
    runtime: Runtime,
) -> Path:
    """Write folder/step-N from all ranks; returns it. A kill at any instant leaves the last one.

    engine None at a stage's end. OSError on a rank that could not write, with the space that is
    left where that is the reason; the others wait for it, so it has to end the process.
    """
    tag = f"step-{state.step:08d}"
    aside = folder / (tag + _ASIDE)
    if runtime.is_main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    final = folder / tag
    try:
        sums = all_ranks({} if engine is None else _write_state(engine, aside, runtime))
        if runtime.is_main:
            every = {name: value for of_rank in sums for name, value in of_rank.items()}
            record = {"state": asdict(state), "fixed": fixed, "sha256": every}
            write_durably(aside / STATE_FILE, json.dumps(record, indent=2))
            shutil.rmtree(final, ignore_errors=True)
            rename_durably(aside, final)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"checkpoint {final} could not be written: {why_not_written(error, folder)}. The one "
            "before it stands: make room, then give the same command again"
        ) from error
    if runtime.is_main:
        _remove_old(folder, keep)
    barrier()
    return final


def _write_state(engine: "Engine", aside: Path, runtime: Runtime) -> dict[str, str]:
    """This rank's file, synced: name -> sha256. All ranks' together are the whole, whatever a
    listing of the folder shows on a shared file system."""
    share = engine.training_state()
    name = f"state-{runtime.rank:05d}-of-{runtime.world_size:05d}.safetensors"
    write_tensors(aside / name, share)
    return {name: file_sha256(aside / name)}


def load(engine: "Engine", folder: Path, tag: str) -> None:
    """Give a new engine the state of folder/tag, which `newest` has found whole. Collective."""
    names = _record(folder / tag)["sha256"]
    if _is_deepspeed(names):
        engine.load_deepspeed(folder, tag)
    else:
        engine.load_training_state(_Tensors([folder / tag / name for name in names]))


class _Tensors(Mapping[str, "Tensor"]):
    """The tensors of several safetensors files, each read when it is asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        files = [safe_open(path, framework="pt") for path in paths]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self._files:
            raise RuntimeError(f"{self._paths[0].parent} holds no {name}: it is of another model")
        return self._files[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _record(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))


def _is_deepspeed(names: Iterable[str]) -> bool:
    return any(name.endswith(".pt") for name in names)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None without any. For the main rank alone.

    A damaged one is named, put out of the way and the one before it is taken. RuntimeError where
    all are damaged. What killed saves left is removed: the caller owns the folder.
    """
    for path in folder.glob("step-*" + _ASIDE):
        shutil.rmtree(path)  # of a save that was killed
    complete = sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)
    damaged: list[Path] = []
    for path in complete:
        damage = _damage(path)
        if damage is None:
            for one in damaged:
                # Else it would count as one of those to keep, and outlive the good ones.
                shutil.rmtree(one.with_name(one.name + _DAMAGED), ignore_errors=True)
                one.rename(one.with_name(one.name + _DAMAGED))
            record = _record(path)
            return Checkpoint(
                tag=path.name,
                state=_state(record["state"]),
                fixed=record.get("fixed"),
                deepspeed_shape=_deepspeed_shape(record),
            )
        print(f"checkpoint {path} is damaged ({damage}): trying the one before it", flush=True)
        damaged.append(path)
    if damaged:
        raise RuntimeError(
            f"all {len(damaged)} checkpoints in {folder} are damaged: restore one, or start "
            "again with another run_dir"
        )
    return None


def _state(values: dict[str, Any]) -> RunState:
    """Fields that other versions write are passed over; those that they lack begin at zero."""
    known = {one.name for one in dataclasses.fields(RunState)}
    return RunState(**{name: value for name, value in values.items() if name in known})


def _deepspeed_shape(record: dict[str, Any]) -> tuple[int, int, bool] | None:
    state = record["state"]
    if state["stage_step"] == 0 or not _is_deepspeed(record["sha256"]):
        return None
    return state["world_size"], state["zero_stage"], state.get("offload", False)


def _damage(path: Path) -> str | None:
    try:
        for name, expected in _record(path)["sha256"].items():
            if file_sha256(path / name) != expected:
                return f"{name} differs from its checksum"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _remove_old(folder: Path, keep: int) -> None:
    complete = sorted(folder.glob("step-" + "[0-9]" * 8))
    for path in [*complete[:-keep], *folder.glob("step-*" + _DAMAGED)]:
        shutil.rmtree(path)
