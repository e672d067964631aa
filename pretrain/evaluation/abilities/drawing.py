"""Drawing with Pillow: shapes, textures, words and drawings of things on a white square."""

import io
import math
from functools import cache
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

SIDE = 224  # px of a finished picture
_FINER = 2  # drawn so many times larger, then reduced: Pillow's edges are not antialiased
COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 98, 190),
    "green": (44, 150, 60),
    "yellow": (240, 196, 15),
    "purple": (128, 60, 170),
    "orange": (245, 130, 20),
    "black": (25, 25, 25),
    "brown": (121, 78, 50),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
TEXTURES = ("plain", "striped", "dotted", "checkered")
Point = tuple[float, float]


class Canvas:
    """A white square in units of its side: (0, 0) is the upper left corner, (1, 1) the lower
    right one."""

    def __init__(self) -> None:
        self._px = SIDE * _FINER
        self._picture = Image.new("RGB", (self._px, self._px), (255, 255, 255))

    def finish(self) -> Image.Image:
        return self._picture.resize((SIDE, SIDE), Image.Resampling.BOX)

    def shape(
        self, name: str, colour: str, centre: Point, size: float, texture: str = "plain"
    ) -> None:
        """A shape as wide as `size`, in a colour, its texture cut out in white."""
        px = round(size * self._px)
        mask = _shape_mask(name, px)
        if texture != "plain":
            mask = ImageChops.multiply(mask, _texture_mask(texture, px))
        self._place(Image.new("RGB", mask.size, COLOURS[colour]), mask, centre)

    def arrow(self, colour: str, quarter_turns: int, size: float, centre: Point) -> None:
        """An arrow pointing up, turned clockwise by quarters."""
        px = round(size * self._px)
        mask = _polygon(px, _ARROW).rotate(-90 * quarter_turns)
        self._place(Image.new("RGB", mask.size, COLOURS[colour]), mask, centre)

    def thing(self, file: bytes, centre: Point, size: float, quarter_turns: int = 0) -> None:
        """A drawing from a file, turned clockwise by quarters; its white background is white."""
        px = round(size * self._px)
        drawing = Image.open(io.BytesIO(file)).convert("RGB")
        drawing = drawing.resize((px, px), Image.Resampling.BICUBIC).rotate(-90 * quarter_turns)
        self._place(drawing, Image.new("L", (px, px), 255), centre)

    def text(self, text: str, colour: str, font: str, centre: Point, width: float) -> None:
        """A text as wide as `width`, or half as high, whichever is smaller."""
        trial = fonts()[font](100)
        left, top, right, bottom = trial.getbbox(text)
        scale = min(width / (right - left), width / 2 / (bottom - top)) * self._px
        own = fonts()[font](max(1, int(100 * scale)))
        left, top, right, bottom = own.getbbox(text)
        place = (
            centre[0] * self._px - (left + right) / 2,
            centre[1] * self._px - (top + bottom) / 2,
        )
        ImageDraw.Draw(self._picture).text(place, text, fill=COLOURS[colour], font=own)

    def _place(self, layer: Image.Image, mask: Image.Image, centre: Point) -> None:
        corner = [round(at * self._px - layer.width / 2) for at in centre]
        self._picture.paste(layer, (corner[0], corner[1]), mask)


@cache
def fonts() -> dict:
    """{name: its font of a size in px}: Pillow's own, and the DejaVu that matplotlib brings."""
    import matplotlib

    found = {"default": cache(lambda px: ImageFont.load_default(px))}
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
    ):
        file = folder / f"{name}.ttf"
        found[name] = cache(lambda px, file=file: ImageFont.truetype(str(file), px))
    return found


_ARROW = ((0.5, 0), (0.9, 0.45), (0.64, 0.45), (0.64, 1), (0.36, 1), (0.36, 0.45), (0.1, 0.45))
_CORNERS = {
    "square": ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)),
    "triangle": ((0.5, 0.04), (0.98, 0.92), (0.02, 0.92)),
    "cross": (
        *((0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67)),
        *((0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)),
    ),
    "star": tuple(
        (
            0.5 + (0.5 if i % 2 == 0 else 0.2) * math.sin(i * math.pi / 5),
            0.52 - (0.5 if i % 2 == 0 else 0.2) * math.cos(i * math.pi / 5),
        )
        for i in range(10)
    ),
    # x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
    "heart": tuple(
        (
            0.5 + 16 * math.sin(t) ** 3 / 34,
            0.46
            - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 34,
        )
        for t in (2 * math.pi * i / 60 for i in range(60))
    ),
}


def _polygon(px: int, corners: tuple[Point, ...]) -> Image.Image:
    mask = Image.new("L", (px, px), 0)
    ImageDraw.Draw(mask).polygon([(x * (px - 1), y * (px - 1)) for x, y in corners], fill=255)
    return mask


def _shape_mask(name: str, px: int) -> Image.Image:
    if name != "circle":
        return _polygon(px, _CORNERS[name])
    mask = Image.new("L", (px, px), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, px - 1, px - 1), fill=255)
    return mask


def _texture_mask(texture: str, px: int) -> Image.Image:
    """White where colour stays: seven bands, five rows of dots, or six rows of fields."""
    mask = Image.new("L", (px, px), 255)
    pen = ImageDraw.Draw(mask)
    if texture == "striped":
        for band in range(1, 7, 2):
            pen.rectangle((0, px * band / 7, px, px * (band + 1) / 7), fill=0)
    elif texture == "dotted":
        step, radius = px / 5, px / 16
        for row in range(5):
            for column in range(5):
                x, y = (column + 0.5) * step, (row + 0.5) * step
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    elif texture == "checkered":
        step = px / 6
        for row in range(6):
            for column in range(row % 2, 6, 2):
                pen.rectangle(
                    (column * step, row * step, (column + 1) * step, (row + 1) * step), fill=0
                )
    else:
        raise ValueError(f"texture {texture!r}: one of {TEXTURES}")
    return mask
