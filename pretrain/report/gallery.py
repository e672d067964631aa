"""The gallery section: held-out pictures with the captions that the model finds best."""

import base64
import binascii

from pretrain.report import figures
from pretrain.report.markup import Html, element, join, paragraph
from pretrain.report.run_folder import GALLERY_FILE, Record, Run
from pretrain.report.summary import DIRECTIONS, final_sets, objects


def gallery_section(run: Run) -> Html:
    """Every picture of the gallery with its own caption and its top-5, right ones marked."""
    title = element("h2", None, "Gallery")
    images = (run.gallery or {}).get("images")
    shots = [image for image in images if isinstance(image, dict)] if images else []
    if not shots:
        return join([title, paragraph(f"There is no {GALLERY_FILE} here yet.", kind="missing")])
    ranks = [[bool(guess.get("right")) for guess in _guesses(shot)] for shot in shots]
    first = sum(rank[:1] == [True] for rank in ranks)
    any_of_five = sum(any(rank) for rank in ranks)
    assert run.gallery is not None
    note = (
        f"{len(shots)} pictures of {figures.readable(run.gallery.get('set', 'a held-out set'))}, "
        "drawn at random by a seed, not picked. Under each true caption: the model's five best "
        f"of all captions of the set, with cosine similarity. Right at first place: {first} of "
        f"{len(shots)}; among the five: {any_of_five} of {len(shots)}."
    )
    whole = objects(final_sets(run).get(str(run.gallery.get("set")))).get(DIRECTIONS[0][0], {})
    if "r@1" in whole and "r@5" in whole:
        note += (
            f" Over the whole set these are {figures.percent(whole['r@1'])} and "
            f"{figures.percent(whole['r@5'])}."
        )
    grid = element("div", {"class": "gallery"}, *(_shot(shot) for shot in shots))
    return join([title, paragraph(note), grid])


def _guesses(shot: Record) -> list[Record]:
    guesses = shot.get("top5")
    return [guess for guess in guesses if isinstance(guess, dict)] if guesses else []


def _shot(shot: Record) -> Html:
    caption = shot.get("caption", figures.MISSING)
    lines = []
    for guess in _guesses(shot):
        is_right = bool(guess.get("right"))
        score = figures.number(guess.get("score"))
        lines.append(
            element(
                "li",
                {"class": "right"} if is_right else {},
                element("i", None, "✓" if is_right else "✗"),
                element("span", None, guess.get("caption", figures.MISSING)),
                element("em", None, figures.MISSING if score is None else f"{score:.2f}"),
            )
        )
    text = element(
        "div",
        None,
        element("div", {"class": "truth"}, caption),
        element("ol", None, *lines),
    )
    return element("div", {"class": "shot", "title": shot.get("key", "")}, _picture(shot), text)


def _picture(shot: Record) -> Html:
    """The picture inline; a blank square where its base64 is broken."""
    try:
        data = base64.b64decode(str(shot.get("jpeg_base64") or ""), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        return element("div", {"class": "blank"})
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
    return element("img", {"src": source, "alt": shot.get("caption", "")})
