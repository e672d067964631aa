"""Checkpoints on the disk: complete or absent, found and read. Another module writes them.

A checkpoint inside a stage holds the training state by parameter name, of any number of ranks and
any ZeRO stage, as safetensors; one at a stage's end only says where the run stands, because the
next stage starts from the stage's weights. Nothing in it is code.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pretrain.base.distributed import agreed
from pretrain.base.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.engine.engine import Engine

STATE_FILE = "state.json"  # written last: names every file, with its sha256 and its bytes
ASIDE, REPLACED, _DAMAGED = ".incomplete", ".replaced", ".damaged"
_LOOK_AGAIN_S = 0.2
_WEIGHT = "model/weight/"  # stands before a parameter's name, of its fp32 master


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; with the recipe and the seed, all that a resume needs to know."""

    stage: int = 0  # index of the stage that goes on
    stage_step: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in the whole job
    samples_seen: int = 0  # position in the sample stream
    dataset_fingerprint: str = ""
    weights_sha256: str = ""
    recaptions_sha256: str = ""
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


def tag_of(state: RunState) -> str:
    """The folder of the checkpoint that a state is kept in."""
    return f"step-{state.step:08d}"


def load(engine: "Engine", folder: Path, tag: str, *, late_files_s: float) -> None:
    """Give a new engine the state of folder/tag, which `newest` has found whole.

    StoppedError on all ranks where one does not see a file of it within late_files_s; the engine
    is as it was then. Collective.
    """
    agreed(lambda: _await_files(folder / tag, late_files_s))
    names = _record(folder / tag)["sha256"]
    if _is_deepspeed(names):
        engine.load_deepspeed(folder, tag)
    else:
        engine.load_training_state(_Tensors([folder / tag / name for name in names]))


def read_state(path: Path) -> RunState:
    """Where the run stood at a checkpoint. OSError where it is gone."""
    return _state(_record(path)["state"])


def read_weights(path: Path) -> "dict[str, Tensor]":
    """The model's whole fp32 weights by name, of all ranks' files; none of a stage's end.

    For a process that does not own the folder: OSError where the checkpoint is removed meanwhile
    or not yet all seen here, ValueError where it is damaged or holds DeepSpeed's own files.
    """
    from safetensors.torch import load as tensors_of

    sums, found = _record(path)["sha256"], {}
    if _is_deepspeed(sums):
        raise ValueError(f"checkpoint {path} is older: it holds DeepSpeed's own files")
    for name, expected in sums.items():
        # Read, not mapped: pages of a file that is removed on a network disk would kill us.
        content = (path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"checkpoint {path}: {name} differs from its checksum")
        try:
            tensors = tensors_of(content)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path}: {name}: {error}") from error
        for key, value in tensors.items():
            if key.startswith(_WEIGHT):
                found[key.removeprefix(_WEIGHT)] = value.clone()  # lets go of the moments
    return found


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


def newest(folder: Path, *, late_files_s: float) -> Checkpoint | None:
    """The newest whole checkpoint; None without any. For the main rank alone.

    A damaged one, one of whose files is missing after late_files_s too, is named, put out of the
    way and the one before it is taken. RuntimeError where all are damaged. What killed saves left
    is removed: the caller owns the folder.
    """
    for path in folder.glob("step-*" + ASIDE):
        shutil.rmtree(path)  # of a save that was killed
    for path in folder.glob("step-*" + REPLACED):
        if (own := path.with_name(path.name.removesuffix(REPLACED))).exists():
            shutil.rmtree(path)
        else:  # killed before the new one had its name
            path.rename(own)
    damaged: list[Path] = []
    for path in reversed(complete(folder)):
        damage = _damage(path, late_files_s)
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


def _damage(path: Path, late_files_s: float) -> str | None:
    try:
        sums = _record(path)["sha256"]
        _await_files(path, late_files_s)
        for name, expected in sums.items():
            if file_sha256(path / name) != expected:
                return f"{name} differs from its checksum"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _await_files(path: Path, late_files_s: float) -> None:
    """Wait until all of a checkpoint is seen here: a network disk shows other nodes' files late.

    OSError where one is not there, or has not its size, after so many seconds.
    """
    deadline = time.monotonic() + late_files_s
    while late := _late_file(path):
        if time.monotonic() > deadline:
            raise OSError(
                f"checkpoint {path}: {late} on {os.uname().nodename} after "
                f"checkpoint.late_files_s={late_files_s:g}: raise it where the disk is slower"
            )
        time.sleep(_LOOK_AGAIN_S)


def _late_file(path: Path) -> str | None:
    """What is not yet seen of a checkpoint. Opens each file: a stat may be answered from memory."""
    name = STATE_FILE
    try:
        record = _record(path)
        sizes = record.get("bytes", {})  # not in those before December 2026
        for name in record["sha256"]:
            with (path / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
            if size < sizes.get(name, 0):
                return f"{name} has {size} of {sizes[name]} bytes"
    except (FileNotFoundError, json.JSONDecodeError):
        return f"{name} is missing"
    return None


def remove_old(folder: Path, *, keep: int, keep_every_steps: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and, for ever, the first that stands at or past
    each multiple of keep_every_steps; damaged ones too. The newest always stays."""
    found = complete(folder)
    kept = set(found[-keep:])
    if keep_every_steps is not None:
        multiple = 0
        for path in found:
            if int(path.name.removeprefix("step-")) // keep_every_steps > multiple:
                multiple = int(path.name.removeprefix("step-")) // keep_every_steps
                kept.add(path)
    for path in [*found, *folder.glob("step-*" + _DAMAGED)]:
        if path not in kept:
            # What cannot be removed now (a file that a network disk still holds) is tried again
            # after the next save; this one is whole all the same.
            shutil.rmtree(path, ignore_errors=True)


def complete(folder: Path) -> list[Path]:
    """Every checkpoint that has its name, oldest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 8))
