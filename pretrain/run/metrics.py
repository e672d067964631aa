"""The run's log: metrics.jsonl is the truth, trackers mirror it, the bar is for watching."""

import json
import math
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.base.files import write_durably
from pretrain.base.progress import Bar
from pretrain.base.run_files import METRICS_FILE, read_events
from pretrain.run.trackers import Mirror

# Written before the checkpoint of their position is, and never again after it.
_COUNTED = ("stage", "step", "evaluation")
_PLACE = {"step", "samples_seen"}  # numbers of a line that are the curve's own place


class RunLog:
    """Writes events of a run; on ranks other than the main one it does nothing."""

    def __init__(
        self,
        run_dir: Path,
        *,
        is_main: bool,
        samples: int,
        samples_seen: int,
        lines: int = 0,
        mirrors: Sequence[Mirror] = (),
    ) -> None:
        """samples: of the whole job; samples_seen: at the start, for the progress bar. lines: of
        stages, steps and evaluations, that the log holds already."""
        self.is_main, self.lines = is_main, lines
        self._said: set[str] = set()
        if not is_main:
            return
        self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8", buffering=1)
        self._mirrors = list(mirrors)
        self._bar = Bar(what="train", unit="samples", total=samples, done=samples_seen)

    def event(self, event: str, **values: Any) -> None:
        """Append one line; numbers of `step` and `evaluation` events go to the mirrors too.

        A number that is not finite becomes null: JSON has no other word for it.
        """
        if not self.is_main:
            return
        line = {"event": event, "time": time.time(), **finite(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines += event in _COUNTED
        if event in ("step", "evaluation"):
            curves = _figures(values) if event == "evaluation" else _numbers(values, "step/")
            for mirror in list(self._mirrors):
                self._show(mirror, curves, values["samples_seen"])

    def _show(self, mirror: Mirror, curves: dict[str, float], samples_seen: int) -> None:
        """A service that fails is left alone from then on: the log itself is the truth."""
        try:
            mirror.add(curves, samples_seen)
        except Exception as error:
            self._mirrors.remove(mirror)
            self.say(f"{type(mirror).__name__} shows no more: {type(error).__name__}: {error}")

    def progress(self, samples_seen: int, **shown: str) -> None:
        """Move the bar to a position of the job."""
        if self.is_main:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(samples_seen - self._bar.n)

    def say(self, message: str) -> None:
        """A line for people, from the main rank only."""
        if self.is_main:
            self._bar.write(message)

    def say_once(self, topic: str, message: str) -> None:
        """A line for people that this process says about a topic only once."""
        if topic not in self._said:
            self._said.add(topic)
            self.say(message)

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        if self.is_main:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self.is_main:
            self.sync()
            self._bar.close()
            self._file.close()
            for mirror in self._mirrors:
                mirror.close()


def truncate(run_dir: Path, samples_seen: int) -> int:
    """Drop the lines past a position: a resumed run writes them again, identically. Lines that are
    no events go too. Returns how many stages, steps and evaluations are left."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        return 0
    kept, counted = [], 0
    for line, event in read_events(path):
        if event is None:
            continue
        seen = event.get("samples_seen") or 0
        # What starts or ends here will be written again.
        if seen < samples_seen or (seen == samples_seen and event["event"] not in ("stage", "end")):
            kept.append(line)
            counted += event["event"] in _COUNTED
    write_durably(path, "".join(line + "\n" for line in kept))
    return counted


def code_commit() -> str | None:
    """The commit of the code that runs, with a + where the tree has changes; None outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def finite(value: Any) -> Any:
    """The value with null for each number that is not finite: JSON has no word for those."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """One curve a figure, for each lengths that a model is evaluated at."""
    names = ("task", "set", "part", "name")
    return {
        "/".join(["evaluation", values["tokens"], *filter(None, map(one.get, names))]): one["value"]
        for one in values["figures"]
    }


def _numbers(values: dict[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(_numbers(value, f"{prefix}{name}/"))
        elif name not in _PLACE and isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found
