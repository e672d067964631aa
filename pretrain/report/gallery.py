"""The gallery: held-out pictures with the captions that the model finds best."""

import base64
import binascii
from dataclasses import dataclass

from pretrain.report import figures
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import DIRECTIONS, final_sets, objects


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A caption that the model ranks high, with its cosine similarity."""

    caption: str
    score: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture with its own caption and the model's best."""

    key: str
    jpeg_base64: str
    """Empty where the record's base64 is broken."""
    caption: str
    guesses: list[Guess]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All pictures, and how many of them are right."""

    set_name: str
    shots: list[Shot]
    first: int
    """Pictures whose best caption is right."""
    among_five: int
    whole_set: tuple[str, str] | None
    """R@1 and R@5 over the whole set, where they are known."""


def gallery_of(run: Run) -> Gallery | None:
    """Every picture of the gallery, right captions marked; None if there is none."""
    record = run.gallery or {}
    images = record.get("images")
    shots = [_shot(image) for image in images or [] if isinstance(image, dict)]
    if not shots:
        return None
    whole = objects(final_sets(run).get(str(record.get("set")))).get(DIRECTIONS[0][0], {})
    is_known = "r@1" in whole and "r@5" in whole
    return Gallery(
        set_name=figures.readable(record.get("set", "a held-out set")),
        shots=shots,
        first=sum(shot.guesses[0].is_right for shot in shots if shot.guesses),
        among_five=sum(any(guess.is_right for guess in shot.guesses) for shot in shots),
        whole_set=(figures.percent(whole["r@1"]), figures.percent(whole["r@5"]))
        if is_known
        else None,
    )


def _shot(image: Record) -> Shot:
    guesses = [guess for guess in image.get("top5") or [] if isinstance(guess, dict)]
    return Shot(
        key=str(image.get("key", "")),
        jpeg_base64=_checked(image.get("jpeg_base64")),
        caption=str(image.get("caption", figures.MISSING)),
        guesses=[_guess(guess) for guess in guesses],
    )


def _guess(guess: Record) -> Guess:
    score = figures.number(guess.get("score"))
    return Guess(
        caption=str(guess.get("caption", figures.MISSING)),
        score=figures.MISSING if score is None else f"{score:.2f}",
        is_right=bool(guess.get("right")),
    )


def _checked(encoded: object) -> str:
    """Base64 text as it should be, or nothing."""
    try:
        data = base64.b64decode(str(encoded or ""), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(data).decode("ascii")
