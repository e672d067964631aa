"""Checkpoints: complete or absent. Written aside, synced, hashed by the writing ranks, renamed.

A checkpoint inside a stage holds DeepSpeed's state; one at a stage's end only says where the run
stands, because the next stage starts from the stage's weights.
"""

import dataclasses
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.distributed import Runtime, all_ranks, barrier
from pretrain.files import (
    file_sha256,
    rename_durably,
    sync,
    why_not_written,
    write_durably,
)

if TYPE_CHECKING:
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
    world_size: int = 0
    zero_stage: int = 0
    offload: bool = False
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
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise OSError(
            f"checkpoint {final} could not be written: {why_not_written(error, folder)}. The one "
            "before it stands: make room, then give the same command again"
        ) from error
    if runtime.is_main:
        _remove_old(folder, keep)
    barrier()
    return final


def _write_state(engine: "Engine", aside: Path, runtime: Runtime) -> dict[str, str]:
    """DeepSpeed's files of this rank, synced: name -> sha256. All ranks' together are the whole,
    whatever a listing of the folder shows on a shared file system."""
    engine.save(aside.parent, aside.name)
    mine = [path for path in sorted(aside.iterdir()) if _writer(path.name) == runtime.rank]
    if not mine:
        raise OSError(f"DeepSpeed wrote no file of rank {runtime.rank} into {aside}")
    for path in mine:
        sync(path)
    return {path.name: file_sha256(path) for path in mine}


def _writer(name: str) -> int:
    """Rank that writes a file of DeepSpeed's: [bf16_]zero_pp_rank_R_…, all else by rank 0."""
    _, found, rest = name.partition("zero_pp_rank_")
    return int(rest.partition("_")[0]) if found else 0


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
            record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            return Checkpoint(
                tag=path.name, state=_state(record["state"]), fixed=record.get("fixed")
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


def _damage(path: Path) -> str | None:
    try:
        sums = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))["sha256"]
        for name, expected in sums.items():
            if file_sha256(path / name) != expected:
                return f"{name} differs from its checksum"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _remove_old(folder: Path, keep: int) -> None:
    complete = sorted(folder.glob("step-" + "[0-9]" * 8))
    for path in [*complete[:-keep], *folder.glob("step-*" + _DAMAGED)]:
        shutil.rmtree(path)
