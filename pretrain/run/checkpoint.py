"""Checkpoints: complete or absent. Written aside, checksummed, renamed."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.distributed import Runtime, barrier, broadcast_object
from pretrain.engine.engine import Engine
from pretrain.files import file_sha256, rename_durably, sync, write_durably

STATE_FILE = "state.json"
_ASIDE = ".incomplete"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; with the recipe and the seed, all that a resume needs to know."""

    stage: int  # index of the stage that goes on
    stage_step: int  # optimizer steps done in it
    step: int  # optimizer steps done in the whole job
    samples_seen: int  # position in the sample stream
    world_size: int
    zero_stage: int
    recipe_sha256: str  # of every option that decides the numbers
    dataset_fingerprint: str


def save(engine: Engine, folder: Path, state: RunState, *, keep: int, runtime: Runtime) -> Path:
    """Write folder/step-N from all ranks; returns it. A kill at any instant leaves the last one."""
    tag = f"step-{state.step:08d}"
    aside = folder / (tag + _ASIDE)
    if runtime.is_main:
        shutil.rmtree(aside, ignore_errors=True)
    barrier()
    engine.save(folder, aside.name, {})
    barrier()
    final = folder / tag
    if runtime.is_main:
        sums = {
            str(file.relative_to(aside)): file_sha256(file)
            for file in sorted(aside.rglob("*"))
            if file.is_file()
        }
        record = {"state": asdict(state), "sha256": sums}
        write_durably(aside / STATE_FILE, json.dumps(record, indent=2))
        for file in aside.rglob("*"):
            sync(file)
        shutil.rmtree(final, ignore_errors=True)
        rename_durably(aside, final)
        _remove_old(folder, keep)
    barrier()
    return final


def latest(folder: Path, runtime: Runtime) -> tuple[str, RunState] | None:
    """(tag, state) of the newest whole checkpoint, the same on every rank; None without any.

    A damaged one is named and the one before it is taken. RuntimeError where all are damaged.
    """
    found: tuple[str, RunState] | str | None = None
    if runtime.is_main:
        try:
            found = _newest_whole(folder)
        except RuntimeError as error:
            found = str(error)
    found = broadcast_object(found)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _newest_whole(folder: Path) -> tuple[str, RunState] | None:
    complete = [path for path in folder.glob("step-*") if not path.name.endswith(_ASIDE)]
    for path in sorted(complete, reverse=True):
        damage = _damage(path)
        if damage is None:
            record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            return path.name, RunState(**record["state"])
        print(f"checkpoint {path} is damaged ({damage}): trying the one before it", flush=True)
    if complete:
        raise RuntimeError(
            f"all {len(complete)} checkpoints in {folder} are damaged: restore one, or start "
            "again with another run_dir"
        )
    return None


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
    complete = sorted(p for p in folder.glob("step-*") if not p.name.endswith(_ASIDE))
    for path in complete[: -max(keep, 1)]:
        shutil.rmtree(path)
