"""The gallery: held-out pictures with the captions that the model finds best, and the reverse; and
the classes and captions that it takes for one another most often."""

import base64
import binascii

from pretrain.report import figures
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import DIRECTIONS, by_key, final_figures


def gallery_of(run: Run) -> Record | None:
    """Pictures, and captions, with their answers and how many are right; None without a gallery."""
    record = run.gallery or {}
    shots = [_shot(image) for image in _members(record, "images")]
    if not shots:
        return None
    return {
        "set": figures.readable(record.get("set", "a held-out set")),
        "shots": shots,
        "is_ranked": all(shot["rank"] for shot in shots),
        "pictures": _right(run, shots, 0),
        "queries": (queries := [_query(text) for text in _members(record, "texts")]),
        "texts": _right(run, queries, 1),
    }


def picture_of(found: object) -> Record:
    """A stored picture as the page shows it: its base64 is empty where it is broken or absent."""
    record = found if isinstance(found, dict) else {}
    try:
        jpeg = base64.b64decode(str(record.get("jpeg_base64") or ""), validate=True)
    except (binascii.Error, ValueError):
        jpeg = b""
    return {
        "key": record.get("key", ""),
        "jpeg_base64": base64.b64encode(jpeg).decode("ascii"),
        "caption": record.get("caption", figures.MISSING),
    }


def _right(run: Run, queries: list[Record], direction: int) -> Record:
    """How many queries are right at first place and among five, and the whole set's rates."""
    name = str((run.gallery or {}).get("set"))
    whole = by_key(final_figures(run), name)
    keys = [("retrieval", DIRECTIONS[direction][0], k) for k in ("r@1", "r@5")]
    return {
        "first": sum(any(guess["is_right"] for guess in one["guesses"][:1]) for one in queries),
        "among_five": sum(any(guess["is_right"] for guess in one["guesses"]) for one in queries),
        "whole_set": [figures.percent(whole[key].get("value")) for key in keys if key in whole],
    }


def _shot(image: Record) -> Record:
    """One picture with its caption and the model's best captions."""
    return {**picture_of(image), "rank": _rank(image), "guesses": _guesses(image)}


def _query(text: Record) -> Record:
    """One caption with the model's best pictures, and its own where that is not among them."""
    guesses = _guesses(text)
    is_found = any(guess["is_right"] for guess in guesses)
    return {
        "caption": text.get("caption", figures.MISSING),
        "rank": _rank(text),
        "guesses": guesses,
        "own": None if is_found else picture_of(text.get("right")),
    }


def _guesses(query: Record) -> list[Record]:
    return [
        {
            **picture_of(guess),
            "score": f"{score:.2f}"
            if (score := figures.number(guess.get("score"))) is not None
            else figures.MISSING,
            "is_right": bool(guess.get("right")),
        }
        for guess in _members(query, "top5")
    ]


def _rank(query: Record) -> str:
    """`rank 17 of 1,720`; empty where none is told."""
    if figures.number(query.get("rank")) is None:
        return ""
    return f"rank {figures.count(query['rank'])} of {figures.count(query.get('of'))}"


def _members(record: Record, field: str) -> list[Record]:
    found = record.get(field)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def confusions_of(run: Run) -> list[Record]:
    """A list of pairs for each task that has any, most frequent first."""
    found = (run.gallery or {}).get("confusions")
    tasks = [task for task in found if isinstance(task, dict)] if isinstance(found, list) else []
    return [shown for task in tasks if (shown := _list_confusions(task))["pairs"]]


def _list_confusions(task: Record) -> Record:
    pairs = task.get("pairs")
    return {
        "title": figures.readable(task.get("task", figures.MISSING)),
        "detail": f"{figures.count(task.get('classes'))} choices, "
        f"{figures.count(task.get('wrong'))} of {figures.count(task.get('n'))} pictures wrong",
        "pairs": [
            {
                "name": pair.get("name", figures.MISSING),
                "taken_for": pair.get("taken_for", figures.MISSING),
                "often": f"{figures.count(pair.get('count'))} of {figures.count(pair.get('of'))}",
                "example": picture_of(pair.get("example")),
            }
            for pair in (pairs if isinstance(pairs, list) else [])
            if isinstance(pair, dict)
        ],
    }
