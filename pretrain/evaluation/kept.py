"""evaluation.json of a run folder: training's points, and behind them what was judged later."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.base.files import why_not_written, write_durably
from pretrain.base.run_files import EVALUATION_FILE, METRICS_FILE, read_json

Point = dict[str, Any]
_BY, _LENGTHS = "by", ("after", "image_px", "image_tokens", "text_tokens")
_FIGURE = ("task", "set", "part", "name")


def run_folder_of(model: Path) -> Path | None:
    """The run folder that a model is, or that an export lies in."""
    return next((one for one in (model, model.parent) if (one / METRICS_FILE).is_file()), None)


def write_training(run_dir: Path, points: Sequence[Point]) -> None:
    """Training's points in the place of its earlier ones; what was judged later stays."""
    try:
        later = [one for one in _read(run_dir) if _BY in one]
    except ValueError:  # half of a file: metrics.jsonl is the truth
        later = []
    _write(run_dir, [*points, *later])


def join(run_dir: Path, points: Sequence[Point]) -> str:
    """Put points of `pretrain.evaluate` behind training's; what people are told of it, in a line.

    One point a model and lengths. A figure that training has alike is left out; a later one takes
    an earlier one's place. A folder that cannot be written is told, and is no fault.
    """
    path = run_dir / EVALUATION_FILE
    try:
        kept = _read(run_dir)
        for point in points:
            _add(kept, point)
        _write(run_dir, kept)
    except ValueError as error:
        return f"note: not kept in {path}, which cannot be read ({error})"
    except OSError as error:
        return f"note: not kept in {path}: {why_not_written(error, run_dir)}; --out FILE keeps it"
    return f"kept in {path}, which the report of the run reads"


def _add(kept: list[Point], point: Point) -> None:
    same = [one for one in kept if all(one.get(name) == point[name] for name in _LENGTHS)]
    known = [figure for one in same if _BY not in one for figure in one["figures"]]
    new = [figure for figure in point["figures"] if figure not in known]
    if not new:
        return
    own = next((one for one in same if _BY in one), None)
    if own is None:
        own = {**point, _BY: "pretrain.evaluate", "figures": []}
        kept.append(own)
    places = {tuple(one[name] for name in _FIGURE) for one in new}
    own["figures"] = [one for one in own["figures"]
                      if tuple(one[name] for name in _FIGURE) not in places] + new  # fmt: skip


def _read(run_dir: Path) -> list[Point]:
    path = run_dir / EVALUATION_FILE
    if not path.is_file():
        return []
    content = read_json(path.read_text(encoding="utf-8"))
    points = content.get("points") if isinstance(content, dict) else None
    if not isinstance(points, list) or not all(
        isinstance(one, dict) and isinstance(one.get("figures"), list) for one in points
    ):
        raise ValueError("it has no points")
    return points


def _write(run_dir: Path, points: Sequence[Point]) -> None:
    write_durably(run_dir / EVALUATION_FILE, json.dumps({"points": [*points]}, indent=2) + "\n")
