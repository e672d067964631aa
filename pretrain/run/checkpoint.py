"""Checkpoints on the disk: complete or absent, found and read. Another module writes them.

A checkpoint inside a stage holds the training state by parameter name, of any number of ranks and
any ZeRO stage, as safetensors; one at a stage's end only says where the run stands, because the
next stage starts from the stage's weights. Nothing in it is code.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.base.distributed import run_together
from pretrain.base.files import file_sha256
from pretrain.engine.result import TrainingEngine
from pretrain.run.late_files import await_seen, unseen
from pretrain.run.record import STATE_FILE, RunState, read_record

ASIDE, REPLACED, _DAMAGED = ".incomplete", ".replaced", ".damaged"
# Before a parameter's name: of the model's fp32 masters, and of the objective's own.
_WEIGHT, _OBJECTIVE = "model/weight/", "objective/weight/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    tag: str
    state: RunState
    fixed: dict[str, Any]  # what the run's stages have fixed


def load(engine: TrainingEngine, folder: Path, tag: str, *, late_files_s: float) -> None:
    """Give a new engine the state of folder/tag, which `newest` has found whole.

    StoppedError on all ranks where one does not see a file of it within late_files_s; the engine
    is as it was then. Collective.
    """
    run_together(lambda: _await_files(folder / tag, late_files_s))
    names = read_record(folder / tag).files
    engine.load_training_state(_Tensors([folder / tag / name for name in names]))


def read_state(path: Path) -> RunState:
    """Where the run stood at a checkpoint. OSError where it is gone, ValueError where it is
    damaged, RuntimeError where another version has written it."""
    record = read_record(path)
    if fault := record.fault():
        raise ValueError(f"checkpoint {path}: {fault}")
    return record.state


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the model's whole fp32 weights, the objective's parameters) by name, of all ranks' files;
    none of a stage's end.

    For a process that does not own the folder: OSError where the checkpoint is removed meanwhile
    or not yet all seen here, ValueError where it is damaged.
    """
    from safetensors.torch import load as tensors_of

    found: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, told in read_record(path).files.items():
        # Read, not mapped: pages of a file that is removed on a network disk would kill us.
        content = (path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != told.sha256:
            raise ValueError(f"checkpoint {path}: {name} differs from its checksum")
        try:
            tensors = tensors_of(content)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path}: {name}: {error}") from error
        for key, value in tensors.items():
            for prefix, kept in ((_WEIGHT, found), (_OBJECTIVE, own)):
                if key.startswith(prefix):
                    kept[key.removeprefix(prefix)] = value.clone()  # lets go of the moments
    return found, own


class _Tensors(Mapping[str, Tensor]):
    """The tensors of several safetensors files, each read when it is asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        files = [safe_open(path, framework="pt") for path in paths]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise RuntimeError(f"{self._paths[0].parent} holds no {name}: it is of another model")
        return self._files[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _remove(path: Path) -> None:
    """A folder with all in it; of a link never what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def newest(folder: Path, *, late_files_s: float) -> Checkpoint | None:
    """The newest whole checkpoint; None without any. For the main rank alone.

    A damaged one, one of whose files is missing after late_files_s too, is named, put out of the
    way and the one before it is taken. RuntimeError where all are damaged, or another version has
    written one. What killed saves left is removed: the caller owns the folder.
    """
    for path in folder.glob("step-*" + ASIDE):
        _remove(path)  # of a save that was killed
    for path in folder.glob("step-*" + REPLACED):
        if (own := path.with_name(path.name.removesuffix(REPLACED))).exists():
            _remove(path)
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
            record = read_record(path)
            return Checkpoint(tag=path.name, state=record.state, fixed=record.fixed)
        print(f"checkpoint {path} is damaged ({damage}): trying the one before it", flush=True)
        damaged.append(path)
    if damaged:
        raise RuntimeError(
            f"all {len(damaged)} checkpoints in {folder} are damaged: restore one, or start "
            "again with another run_dir"
        )
    return None


def _damage(path: Path, late_files_s: float) -> str | None:
    try:
        await_seen(
            lambda: None if (path / STATE_FILE).is_file() else f"{STATE_FILE} is missing",
            f"checkpoint {path}",
            late_files_s,
        )
        record = read_record(path)
        _await_files(path, late_files_s)
        for name, told in record.files.items():
            if file_sha256(path / name) != told.sha256:
                return f"{name} differs from its checksum"
    except (OSError, ValueError) as error:
        return str(error)
    if path.name != record.state.tag:
        return f"{STATE_FILE} is of {record.state.tag}"
    return record.fault()


def _await_files(path: Path, late_files_s: float) -> None:
    """Wait until all of a checkpoint is seen here. OSError after so many seconds."""
    await_seen(lambda: _late_file(path), f"checkpoint {path}", late_files_s)


def _late_file(path: Path) -> str | None:
    """What is not yet seen of a checkpoint."""
    try:
        files = read_record(path).files
    except (FileNotFoundError, ValueError):
        return f"{STATE_FILE} is missing"
    late = (unseen(path / name, told.bytes) for name, told in files.items())
    return next((one for one in late if one is not None), None)


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
