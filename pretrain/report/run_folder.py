"""A run folder as plain records: whatever is there is read, whatever is not is noted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.base.run_files import (
    EVALUATION_FILE,
    GALLERY_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    WATCHED_FILE,
    read_events,
    read_json,
)

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The records of one run, in file order.

    `steps` and `evaluations` hold what the run ended up with: a record that a resume went back
    behind (its samples were trained again) is left out. `events` still holds it. `watched` holds
    what another job judged of the run's checkpoints meanwhile.
    """

    folder: Path
    recipe: str | None
    events: list[Record]
    starts: list[Record]
    stages: list[Record]
    steps: list[Record]
    evaluations: list[Record]
    watched: list[Record]
    checkpoints: list[Record]
    evaluation: Record | None
    gallery: Record | None
    notes: list[str]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def all_evaluations(self) -> list[Record]:
        """Training's evaluations and the watcher's, by samples seen; training's where both are."""
        found = {
            (event.get("tokens"), event.get("samples_seen")): event
            for event in [*self.watched, *self.evaluations]
        }
        return sorted(found.values(), key=lambda event: event.get("samples_seen") or 0)

    @property
    def resumes(self) -> list[Record]:
        """The starts that went on with a stage, rather than began the first or the next one."""
        resumes: list[Record] = []
        announced: set[Any] = set()
        for event, following in zip(self.events, [*self.events[1:], {}], strict=False):
            if event["event"] == "stage":
                announced.add(event.get("stage"))
            elif event["event"] == "start" and announced:
                begins = (
                    following.get("event") == "stage" and following.get("stage") not in announced
                )
                resumes += [] if begins else [event]
        return resumes

    @property
    def samples_replaced(self) -> dict[str, int]:
        """Unusable samples of the whole run by reason, as its last step counts them."""
        found = self.steps[-1].get("samples_replaced") if self.steps else None
        return found if isinstance(found, dict) else {}

    @property
    def updates_skipped(self) -> int:
        """Updates of the whole run that were not made because a number was not finite."""
        found = self.steps[-1].get("updates_skipped") if self.steps else None
        return found if isinstance(found, int) else 0

    @property
    def is_finished(self) -> bool:
        """Whether the last start was followed by an end."""
        marks = [event["event"] for event in self.events if event["event"] in ("start", "end")]
        return bool(marks) and marks[-1] == "end"

    @property
    def samples_seen(self) -> int:
        """The furthest position that any record of the run's final course reached."""
        course = [*self.starts[-1:], *self._course]
        if self.is_finished:
            course += [event for event in self.events if event["event"] == "end"][-1:]
        return max((int(event.get("samples_seen") or 0) for event in course), default=0)

    @property
    def last_step(self) -> int:
        """The furthest step, counted over all stages, that any record of that course reached."""
        return max((int(event.get("step") or 0) for event in self._course), default=0)

    @property
    def _course(self) -> list[Record]:
        return [*self.stages, *self.steps, *self.all_evaluations, *self.checkpoints]


def read_run(folder: Path) -> Run:
    """All records of a run folder.

    FileNotFoundError names a folder that is missing or holds no run, and the remedy. One file of
    a run that is missing, or cut off by a kill, becomes a note, not an error.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no run folder {folder}: set --run_dir to the folder that training wrote (`make demo` "
            f"makes one; `python -m pretrain.train` writes to the recipe's run folder)"
        )
    if not any((folder / name).is_file() for name in (METRICS_FILE, RECIPE_FILE)):
        raise FileNotFoundError(
            f"no run in {folder}: neither {METRICS_FILE} nor {RECIPE_FILE} is there; "
            "set --run_dir to the folder that training wrote"
        )
    notes: list[str] = []
    events = _read_events(folder / METRICS_FILE, notes)
    recipe_path = folder / RECIPE_FILE
    recipe = None
    if recipe_path.is_file():
        recipe = recipe_path.read_text(encoding="utf-8", errors="replace")
    return Run(
        folder=folder,
        recipe=recipe,
        events=events,
        starts=[event for event in events if event["event"] == "start"],
        stages=_final_course(events, "stage", ("stage",)),
        steps=_final_course(events, "step", ("step",)),
        evaluations=_final_course(events, "evaluation", ("stage", "tokens", "samples_seen")),
        watched=_read_events(folder / WATCHED_FILE, notes),
        checkpoints=_final_course(events, "checkpoint", ("step",)),
        evaluation=read_object(folder / EVALUATION_FILE, notes),
        gallery=read_object(folder / GALLERY_FILE, notes),
        notes=notes,
    )


def read_object(path: Path, notes: list[str]) -> Record | None:
    """The JSON object in a file; None if the file is not there or (noted) not a JSON object."""
    if not path.is_file():
        return None
    try:
        value = read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        notes.append(f"{path.name} could not be read and is left out: {error}")
        return None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is left out: a JSON object was expected")
        return None
    return value


def _read_events(path: Path, notes: list[str]) -> list[Record]:
    """The events of a metrics file, one a line; lines that are no event are counted in a note."""
    found = [event for _, event in read_events(path)]
    events = [event for event in found if event is not None]
    unreadable = len(found) - len(events)
    if unreadable:
        notes.append(
            f"{unreadable} of {len(found)} lines of {path.name} could not be read "
            "(a run that was killed may leave its last line cut off)"
        )
    return events


def _final_course(events: list[Record], kind: str, identity: tuple[str, ...]) -> list[Record]:
    """The records of one kind that the run kept, in the order in which they first came.

    A start at S samples takes back everything past S; a record that is written again replaces
    the earlier one of the same identity.
    """
    kept: dict[tuple[Any, ...], Record] = {}
    for event in events:
        if event["event"] == "start":
            resumed_at = event.get("samples_seen") or 0
            kept = {
                key: record
                for key, record in kept.items()
                if (record.get("samples_seen") or 0) <= resumed_at
            }
        elif event["event"] == kind:
            key = tuple(event.get(field) for field in identity)
            # A stage that a resume announces again still began where it was announced first.
            if kind != "stage" or key not in kept:
                kept[key] = event
    return list(kept.values())
