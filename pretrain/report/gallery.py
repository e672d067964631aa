"""The gallery: held-out pictures with the captions that the model finds best."""

import base64
import binascii

from pretrain.report import figures
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import DIRECTIONS, final_sets, objects


def gallery_of(run: Run) -> Record | None:
    """The pictures with their guesses, and how many are right; None if there is no gallery."""
    record = run.gallery or {}
    shots = [_shot(image) for image in record.get("images") or [] if isinstance(image, dict)]
    if not shots:
        return None
    whole = objects(final_sets(run).get(str(record.get("set")))).get(DIRECTIONS[0][0], {})
    return {
        "set": figures.readable(record.get("set", "a held-out set")),
        "shots": shots,
        "first": sum(any(guess["is_right"] for guess in shot["guesses"][:1]) for shot in shots),
        "among_five": sum(any(guess["is_right"] for guess in shot["guesses"]) for shot in shots),
        "whole_set": [figures.percent(whole[k]) for k in ("r@1", "r@5") if k in whole],
    }


def _shot(image: Record) -> Record:
    """One picture, its base64 empty where it is broken, with its caption and the model's best."""
    try:
        jpeg = base64.b64decode(str(image.get("jpeg_base64") or ""), validate=True)
    except (binascii.Error, ValueError):
        jpeg = b""
    return {
        "key": image.get("key", ""),
        "jpeg_base64": base64.b64encode(jpeg).decode("ascii"),
        "caption": image.get("caption", figures.MISSING),
        "guesses": [
            {
                "caption": guess.get("caption", figures.MISSING),
                "score": f"{score:.2f}"
                if (score := figures.number(guess.get("score"))) is not None
                else figures.MISSING,
                "is_right": bool(guess.get("right")),
            }
            for guess in image.get("top5") or []
            if isinstance(guess, dict)
        ],
    }
