"""The sets: for each ability pictures with the captions that may be chosen, one of them right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.evaluation.abilities.drawing import COLOURS, SHAPES, TEXTURES, Canvas, fonts

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = ("cat", "dog", "sun", "car", "red", "yes", "stop", "open", "love", "fish")
PLACES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
TURNS = ("upright", "turned to the right", "upside down", "turned to the left")
POINTING = ("up", "right", "down", "left")
# Drawings that have a plural and an upright, by their caption in the demo corpus.
THINGS = (
    *("umbrella", "sailboat", "house", "mushroom", "penguin", "snail", "bell", "trophy"),
    *("candle", "chair", "owl", "crown", "balloon", "bird", "octopus", "duck"),
)
_CORPUS = Path(__file__).resolve().parents[3] / "data_prep/demo_corpus/emoji.parquet"
Draws = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Question:
    """A picture still to be drawn, and the captions to choose from."""

    draw: Callable[[], Image.Image]
    captions: tuple[str, ...]
    answer: int  # place of the right caption


def things(file: Path = _CORPUS) -> dict[str, bytes]:
    """{caption: drawing} by the demo corpus's held-out artist; empty where the file is not."""
    if not file.is_file():
        return {}
    import polars

    rows = polars.read_parquet(file, columns=["caption", "image", "split"]).filter(
        (polars.col("split") == "held_out_artist") & polars.col("caption").is_in(list(THINGS))
    )
    return dict(sorted(zip(rows["caption"], rows["image"], strict=True)))


def questions(ability: str, seed: int, pictures: int, drawings: dict[str, bytes]) -> list[Question]:
    """So many questions, right answers evenly often; each is drawn from (seed, ability, place)."""
    make = ABILITIES[ability]
    number = list(ABILITIES).index(ability)
    return [
        make(np.random.default_rng([seed, number, place]), place, drawings)
        for place in range(pictures)
    ]


def _one(draws: Draws, values: Sequence[str]) -> str:
    return values[int(draws.integers(len(values)))]


def _two(draws: Draws, values: Sequence[str]) -> tuple[str, str]:
    first, second = draws.choice(len(values), 2, replace=False)
    return values[int(first)], values[int(second)]


def _near(draws: Draws, reach: float) -> float:
    return float(draws.uniform(-reach, reach))


def _colour_and_shape(draws: Draws, shapes: Sequence[str] = SHAPES) -> tuple[str, str]:
    return _one(draws, list(COLOURS)), _one(draws, shapes)


def _counting(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    """One to ten equal objects in random fields of a 4 x 4 grid."""
    answer = place % 10
    fields = draws.choice(16, answer + 1, replace=False)
    # Nudged inside their field, so that objects never touch.
    spots = [
        ((f % 4 + 0.5) / 4 + _near(draws, 0.02), (f // 4 + 0.5) / 4 + _near(draws, 0.02))
        for f in fields
    ]
    size = float(draws.uniform(0.13, 0.19))
    if drawings and place // 10 % 2:
        name = _one(draws, list(drawings))
        one, many = name, {"octopus": "octopuses"}.get(name, name + "s")

        def put(canvas: Canvas, spot: tuple[float, float]) -> None:
            canvas.thing(drawings[name], spot, size)
    else:
        colour, shape = _colour_and_shape(draws)
        one = f"{colour} {shape}"
        many = one + ("es" if shape == "cross" else "s")

        def put(canvas: Canvas, spot: tuple[float, float]) -> None:
            canvas.shape(shape, colour, spot, size)

    def draw() -> Image.Image:
        canvas = Canvas()
        for spot in spots:
            put(canvas, spot)
        return canvas.finish()

    captions = tuple(f"{n} {one if n == 'one' else many}" for n in NUMBERS)
    return Question(draw=draw, captions=captions, answer=answer)


def _written(draws: Draws, text: str, captions: tuple[str, ...], answer: int) -> Question:
    colour, font = _one(draws, list(COLOURS)), _one(draws, list(fonts()))
    width = float(draws.uniform(0.5, 0.8))
    centre = (0.5 + _near(draws, 0.08), 0.5 + _near(draws, 0.15))

    def draw() -> Image.Image:
        canvas = Canvas()
        canvas.text(text, colour, font, centre, width)
        return canvas.finish()

    return Question(draw=draw, captions=captions, answer=answer)


def _digits(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    captions = tuple(f"the number {n}" for n in range(10))
    return _written(draws, str(place % 10), captions, place % 10)


def _words(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    answer = place % len(WORDS)
    text = WORDS[answer].upper() if draws.random() < 0.5 else WORDS[answer]
    return _written(draws, text, tuple(f"the word {word}" for word in WORDS), answer)


def _position(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    """Two objects of different colour and shape beside or above one another."""
    answer = place % 4
    colours, shapes = _two(draws, list(COLOURS)), _two(draws, SHAPES)
    right, down = list(PLACES.values())[answer]
    gap, size = float(draws.uniform(0.2, 0.25)), float(draws.uniform(0.22, 0.32))
    across = _near(draws, 0.15)  # both are moved together, across the line between them
    middle = (0.5 + across * abs(down), 0.5 + across * abs(right))

    def draw() -> Image.Image:
        canvas = Canvas()
        for side, colour, shape in zip((1, -1), colours, shapes, strict=True):
            spot = (middle[0] + side * right * gap, middle[1] + side * down * gap)
            canvas.shape(shape, colour, spot, size)
        return canvas.finish()

    first, second = (f"a {c} {s}" for c, s in zip(colours, shapes, strict=True))
    captions = tuple(f"{_an(first)} {where} {_an(second)}" for where in PLACES)
    return Question(draw=draw, captions=captions, answer=answer)


def _binding(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    """Two objects side by side; the wrong caption swaps their colours."""
    colours, shapes = _two(draws, list(COLOURS)), _two(draws, SHAPES)
    size, swapped = float(draws.uniform(0.24, 0.34)), draws.random() < 0.5
    spots = [(x, 0.5 + _near(draws, 0.2)) for x in ((0.73, 0.27) if swapped else (0.27, 0.73))]

    def draw() -> Image.Image:
        canvas = Canvas()
        for spot, colour, shape in zip(spots, colours, shapes, strict=True):
            canvas.shape(shape, colour, spot, size)
        return canvas.finish()

    pairs = [_pair(colours, shapes), _pair(colours[::-1], shapes)]
    answer = place % 2  # the right caption is first as often as second
    captions = tuple(pairs if answer == 0 else pairs[::-1])
    return Question(draw=draw, captions=captions, answer=answer)


def _pair(colours: Sequence[str], shapes: Sequence[str]) -> str:
    return " and ".join(_an(f"a {c} {s}") for c, s in zip(colours, shapes, strict=True))


def _size(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    """One object that fills an eighth to a quarter of the side, or three to four fifths."""
    answer = place % 2
    size = float(draws.uniform(*((0.12, 0.25), (0.6, 0.8))[answer]))
    centre = (0.5 + _near(draws, 0.1), 0.5 + _near(draws, 0.1))
    colour, shape = _colour_and_shape(draws)
    thing = _one(draws, list(drawings)) if drawings and place // 2 % 2 else None

    def draw() -> Image.Image:
        canvas = Canvas()
        if thing is None:
            canvas.shape(shape, colour, centre, size)
        else:
            canvas.thing(drawings[thing], centre, size)
        return canvas.finish()

    name = thing or f"{colour} {shape}"
    return Question(draw=draw, captions=(f"a small {name}", f"a large {name}"), answer=answer)


def _rotation(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    """An arrow that points to a side, or a drawing turned by quarters."""
    answer = place % 4
    colour, size = _one(draws, list(COLOURS)), float(draws.uniform(0.45, 0.7))
    centre = (0.5 + _near(draws, 0.1), 0.5 + _near(draws, 0.1))
    thing = _one(draws, list(drawings)) if drawings and place // 4 % 2 else None

    def draw() -> Image.Image:
        canvas = Canvas()
        if thing is None:
            canvas.arrow(colour, answer, size, centre)
        else:
            canvas.thing(drawings[thing], centre, size, answer)
        return canvas.finish()

    captions = (
        tuple(_an(f"a {colour} arrow pointing {side}") for side in POINTING)
        if thing is None
        else tuple(f"{_an(f'a {thing}')}, {turn}" for turn in TURNS)
    )
    return Question(draw=draw, captions=captions, answer=answer)


def _texture(draws: Draws, place: int, drawings: dict[str, bytes]) -> Question:
    answer = place % len(TEXTURES)
    colour, shape = _colour_and_shape(draws, ("circle", "square", "heart", "triangle"))
    size = float(draws.uniform(0.5, 0.8))
    centre = (0.5 + _near(draws, 0.08), 0.5 + _near(draws, 0.08))

    def draw() -> Image.Image:
        canvas = Canvas()
        canvas.shape(shape, colour, centre, size, TEXTURES[answer])
        return canvas.finish()

    captions = tuple(f"a {texture} {colour} {shape}" for texture in TEXTURES)
    return Question(draw=draw, captions=captions, answer=answer)


def _an(text: str) -> str:
    """`an orange circle`."""
    return "an" + text[1:] if text[2] in "aeiou" else text


ABILITIES: dict[str, Callable[[Draws, int, dict[str, bytes]], Question]] = {
    "counting": _counting,
    "digits": _digits,
    "words": _words,
    "position": _position,
    "binding": _binding,
    "size": _size,
    "rotation": _rotation,
    "texture": _texture,
}
