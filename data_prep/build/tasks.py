"""A build as independent tasks, and what is on the disk of each: the folder OUT/.build.

    .build/plan.json            what is built of what, and the tasks: ranges of the source's rows
    .build/look.npz             what was found in the tars, where the corpus is of them
    .build/look/MARK/000003.npz before there is a plan: what was found in file 3
    .build/read_captions, select_rows: the same of blocks of rows, for tokenizer and --where
    .build/000012/0.json        a part of task 12 that is done: counts, checksums
    .build/000012/0.160.tar     its shard of a tier
    .build/000012/0.160.npy     the index rows of that shard
    .build/000012/0.counts.npy  how often each token id occurs in it
    .build/lock, 000012/lock    held by the process that works there

A part's files are whole once its .json is there. A task is done once its last part is. When all
are, the shards get their places in OUT by renaming, and the folder goes.
"""

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_prep import records
from data_prep.build.writer import remove_shards
from data_prep.sources.look import Look
from pretrain.base.files import write_durably
from pretrain.base.lock import LOCK_FILE, locked
from pretrain.dataset.manifest import (
    MANIFEST_FILE,
    PICTURES_ROOT_FILE,
    PicturesInfo,
    ShardInfo,
    TokenizerInfo,
)

WORK_FOLDER = ".build"
PLAN_FILE = "plan.json"
LOOK_FILE = "look.npz"
_REPLACED_FILE = "replaced.json"  # the manifest of the dataset that gives way
CAPTIONS_LEFT_OUT = "captions_left_out"  # of a manifest's provenance, where there are some
COLUMNS = "columns"  # of a manifest's provenance, where a look through tars found them
HUB = "hub"  # of a manifest's provenance, where the corpus lies there
DOWNLOADS = "downloads"  # of a manifest's provenance, where img2dataset fetched the corpus


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows of the source from `start` to before `stop`; so many of them pass --where."""

    start: int
    stop: int
    rows: int
    pictures: PicturesInfo | None = None  # the one tar of these rows, where pictures stay in it


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """One tier, as the manifest will describe it."""

    name: str
    shortest_px: int | None
    jpeg_quality: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the tasks and their joining need to know, but for the corpus itself."""

    request: dict[str, Any]  # what decides the bytes; another request is another build
    source_state: str  # of the source's files, by sizes and times
    tasks: list[Task]
    captions: list[str]
    token_dtype: str
    tiers: list[TierPlan]  # the smallest first: it holds the texts
    tokenizer: TokenizerInfo
    tagger: str
    pictures_root: str | None = None  # what pictures_root.txt will say, where pictures stay in tars
    store: str | None = None  # the dataset's address, where it is made for an object store

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One shard of each tier, made of the rows from `start` to before `stop`."""

    start: int
    stop: int
    last: bool  # of its task
    rows: int  # that were read and passed --where
    samples: int
    rejected: dict[str, int]
    shards: dict[str, ShardInfo]  # by tier; none without a sample
    captions_left_out: int = 0  # entries of lists of captions that were too many


def task_folder(out: Path, task: int) -> Path:
    """Where a task's parts lie."""
    return out / WORK_FOLDER / f"{task:06d}"


def look_folder(out: Path) -> Path:
    """Where it is kept what was found in each file of the corpus."""
    return out / WORK_FOLDER / "look"


def first_pass_folder(out: Path, what: str) -> Path:
    """Where it is kept what was read of the corpus before the plan."""
    return out / WORK_FOLDER / what.replace(" ", "_")


def has_plan(out: Path) -> bool:
    """Whether a build of `out` is unfinished."""
    return (out / WORK_FOLDER / PLAN_FILE).exists()


def read_plan(out: Path) -> Plan | None:
    """The plan of an unfinished build; None if there is none."""
    return read_record(out / WORK_FOLDER / PLAN_FILE, Plan) if has_plan(out) else None


def write_plan(out: Path, plan: Plan) -> None:
    """With the plan written, the same command goes on with it."""
    _write_record(out / WORK_FOLDER / PLAN_FILE, plan)


def read_look(out: Path) -> Look | None:
    """What the planner found in the corpus's tars; None if it looked through none."""
    path = out / WORK_FOLDER / LOOK_FILE
    return Look(**records.read_record(path)) if path.exists() else None


def write_look(out: Path, look: Look) -> None:
    """Written before the plan, so that whoever finds that need not look again."""
    records.write_record(out / WORK_FOLDER / LOOK_FILE, vars(look))


def read_parts(folder: Path) -> list[Part]:
    """The parts of a task that are done, in order."""
    parts: list[Part] = []
    while (path := folder / f"{len(parts)}.json").exists():
        parts.append(read_record(path, Part))
    return parts


def forget_parts(folder: Path) -> None:
    """Make a task undone; whoever works there is waited for."""
    if folder.exists():
        with locked(folder):
            for number in reversed(range(len(read_parts(folder)))):
                (folder / f"{number}.json").unlink(missing_ok=True)


def write_part(folder: Path, stem: str, part: Part) -> None:
    """Makes a part done."""
    _write_record(folder / f"{stem}.json", part)


def read_record(path: Path, kind: type[Any]) -> Any:
    """A record of one of these kinds. ValueError names a file that is none."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise ValueError(
            f"{path}: {first}; remove the build's folder {WORK_FOLDER} and give its command again"
        ) from error


def _write_record(path: Path, record: Any) -> None:
    """Durably, as JSON."""
    write_durably(path, json.dumps(asdict(record), ensure_ascii=False, sort_keys=True) + "\n")


def clear(out: Path, tiers: list[str]) -> None:
    """Leave nothing of an older dataset or unfinished build; killed at any time, it goes on.

    The manifest goes first, so that what remains is never taken for a dataset. It stays in the
    work folder until the shards that it names are gone.
    """
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    for manifest in (work / _REPLACED_FILE, out / MANIFEST_FILE):
        if not manifest.exists():
            continue
        replaced = manifest.replace(work / _REPLACED_FILE)
        found = json.loads(replaced.read_text(encoding="utf-8")).get("tiers", {})
        for name in found:
            remove_shards(out / Path(name).name)
        (out / PICTURES_ROOT_FILE).unlink(missing_ok=True)
        replaced.unlink()
    plan = read_plan(out)
    for name in {*tiers, *([tier.name for tier in plan.tiers] if plan else [])}:
        remove_shards(out / name)
    (work / PLAN_FILE).unlink(missing_ok=True)  # first: tasks without a plan count for nothing
    for path in work.iterdir():
        if path.is_dir() and path != look_folder(out):  # which is of the corpus as it is now
            shutil.rmtree(path)
        elif path.is_file() and path.name != LOCK_FILE:
            path.unlink()


def remove_work(out: Path) -> None:
    """The work folder goes, its plan last, so that a kill in between leaves one to go on with."""
    work = out / WORK_FOLDER
    with suppress(FileNotFoundError):  # another process may do the same
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
