"""The files of a run folder, by the names that those who write and those who read them share, and
the reader of those of one JSON object a line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECIPE_FILE = "recipe.yaml"  # the resolved recipe
METRICS_FILE = "metrics.jsonl"  # the truth; TensorBoard mirrors it
WATCHED_FILE = "watched.jsonl"  # evaluations by another job, of checkpoints
EVALUATION_FILE = "evaluation.json"
GALLERY_FILE = "gallery.json"
REPORT_FILE = "report.html"
CHECKPOINTS = "checkpoints"
STAGES = "stages"
AVERAGED = ".ema"  # after the name of a stage, or of an evaluated set: of the averaged weights
PROFILE = "profile"
_WHOLE, _TEXTS = ("samples_seen", "step"), ("event", "stage", "tokens")


def read_events(path: Path, holding: str = "") -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(line, its event) of each line with `holding` in it; None for a line that is no event, as the
    half line of a killed process, or bytes of a damaged disk. Nothing where there is no file.

    An event's `event`, `stage` and `tokens` are texts, `step` and `samples_seen` whole numbers from
    0, where they are there.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            if line.strip() and holding in line:
                yield line.rstrip("\n"), _event(line)


def read_json(text: str) -> Any:
    """What a JSON text says, with null for a number that is not finite. ValueError, in one line,
    for what is none."""
    try:
        return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def _number(word: str) -> int | float | None:
    if word.lstrip("-").isdigit() and len(word) < 20:
        return int(word)
    value = float(word)
    return value if math.isfinite(value) else None


def _event(line: str) -> dict[str, Any] | None:
    try:
        found = read_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or "event" not in found:
        return None
    numbers = [found[name] for name in _WHOLE if name in found]
    texts = [found[name] for name in _TEXTS if name in found]
    is_whole = all(type(number) is int and number >= 0 for number in numbers)
    return found if is_whole and all(isinstance(text, str) for text in texts) else None
