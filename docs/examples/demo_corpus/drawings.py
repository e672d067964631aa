"""The artists' drawings: which package file shows which concept, as 64 px pictures on white."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
from concepts import Concept, NameTable, code_key
from PIL import Image

IMAGE_PX = 64
FXEMOJI_CODE_POINTS = Path(__file__).with_name("fxemoji_code_points.json")
ICONIFY = "@iconify/json/json"

Pixels = npt.NDArray[np.uint8]
"""One drawing, [64, 64, 3]."""


@dataclass(frozen=True, kw_only=True)
class Artist:
    """One drawing style: its name in the corpus, its licence and where its drawings come from."""

    name: str
    licence: str
    """SPDX identifier of the artwork's licence (not of the package that carries it)."""
    source: str
    """Folder of pictures, or Iconify JSON file, below `node_modules`."""
    kind: str
    """`folder` (files named by code point), `chars` (exact map), `names` or `table`."""
    without_subgroups: tuple[str, ...] = ()
    """Concepts to leave out, by subgroup: those that the package took from another artist."""


ARTISTS = (
    Artist(
        name="noto",
        licence="Apache-2.0",
        source="emoji-datasource-google/img/google/64",
        kind="folder",
    ),
    Artist(name="noto-v1", licence="Apache-2.0", source=f"{ICONIFY}/noto-v1.json", kind="names"),
    Artist(
        name="fluent3d",
        licence="MIT",
        source="@lobehub/fluent-emoji-3d/assets",
        kind="folder",
        # Fluent has no flags of places; the package fills the gap with Noto's waving flags.
        without_subgroups=("country flag", "subdivision flag"),
    ),
    Artist(
        name="fluent-flat",
        licence="MIT",
        source=f"{ICONIFY}/fluent-emoji-flat.json",
        kind="chars",
    ),
    Artist(name="emojione", licence="CC-BY-4.0", source=f"{ICONIFY}/emojione.json", kind="names"),
    # Iconify files this set under the licence of its code; upstream's LICENSE.md puts the visual
    # design under CC BY 4.0, and the stricter of the two is what we promise.
    Artist(name="fxemoji", licence="CC-BY-4.0", source=f"{ICONIFY}/fxemoji.json", kind="table"),
    Artist(
        name="streamline",
        licence="CC-BY-4.0",
        source=f"{ICONIFY}/streamline-emojis.json",
        kind="names",
    ),
    Artist(
        name="twemoji",
        licence="CC-BY-4.0",
        source="emoji-datasource-twitter/img/twitter/64",
        kind="folder",
    ),
)


def load_drawings(
    artist: Artist, *, node_modules: Path, concepts: Mapping[str, Concept], names: NameTable
) -> dict[str, Pixels]:
    """Return an artist's drawings by `code_key`: at most one for each concept."""
    path = node_modules / artist.source
    concepts = {
        key: concept
        for key, concept in concepts.items()
        if concept.subgroup not in artist.without_subgroups
    }
    if artist.kind == "folder":
        return {
            key: flatten(Image.open(file))
            for file in sorted(path.iterdir())
            if file.suffix in {".png", ".webp"} and (key := code_key(file.stem)) in concepts
        }
    icon_set = json.loads(path.read_text("utf-8"))
    finder = FINDERS[artist.kind]
    return {
        key: flatten(Image.open(io.BytesIO(rasterise(icon_set, icon))))
        for key, icon in sorted(finder(icon_set, concepts, names).items())
    }


def icons_by_chars(
    icon_set: Mapping[str, Any], concepts: Mapping[str, Concept], names: NameTable
) -> dict[str, str]:
    """Return icon names by `code_key` from the set's exact code-point map."""
    found: dict[str, str] = {}
    for code, icon in sorted(icon_set["chars"].items()):
        if code_key(code) in concepts:
            found.setdefault(code_key(code), icon)
    return found


def icons_by_table(
    icon_set: Mapping[str, Any], concepts: Mapping[str, Concept], names: NameTable
) -> dict[str, str]:
    """Return icon names by `code_key` from the code points in the set's own file names."""
    table: dict[str, str] = json.loads(FXEMOJI_CODE_POINTS.read_text("utf-8"))
    missing = [icon for icon in table if icon not in icon_set["icons"]]
    if missing:
        raise ValueError(
            f"{FXEMOJI_CODE_POINTS.name} names icons that the set lacks: {missing[:5]}; "
            "use the pinned version of the set or correct the table"
        )
    return {code_key(code): icon for icon, code in table.items() if code_key(code) in concepts}


def icons_by_name(
    icon_set: Mapping[str, Any], concepts: Mapping[str, Concept], names: NameTable
) -> dict[str, str]:
    """Return icon names by `code_key` by what the names mean.

    An icon's own name wins over an alias, and a plain name over the first of numbered variants
    (`boar-1` is the neutral one; `boar-2` and up are skin tones or other views, left out).
    """
    flags = set(icon_set.get("categories", {}).get("Flags", ()))
    found: dict[str, str] = {}

    def claim(icon: str, name: str) -> None:
        key = names.find(name) or (names.find_flag(name) if icon in flags else None)
        if key is not None and key in concepts:
            found.setdefault(key, icon)

    for icon in sorted(icon_set["icons"]):
        claim(icon, icon)
    for alias in sorted(icon_set.get("aliases", {})):
        claim(alias, alias)
    for icon in sorted(icon_set["icons"]):
        if re.search(r"-1$", icon):
            claim(icon, icon.removesuffix("-1"))
    return found


FINDERS: Mapping[
    str, Callable[[Mapping[str, Any], Mapping[str, Concept], NameTable], dict[str, str]]
] = {"chars": icons_by_chars, "table": icons_by_table, "names": icons_by_name}


def rasterise(icon_set: Mapping[str, Any], icon: str) -> bytes:
    """Return an icon as PNG bytes, 64 px on its longer side, following aliases and mirrors."""
    spec = icon_set.get("aliases", {}).get(icon)
    body = icon_set["icons"][spec["parent"] if spec else icon]
    left, top = body.get("left", 0), body.get("top", 0)
    width = body.get("width", icon_set.get("width", 16))
    height = body.get("height", icon_set.get("height", 16))
    drawing = body["body"].replace("currentColor", "#000000")
    if spec and spec.get("hFlip"):
        drawing = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{drawing}</g>'
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{IMAGE_PX}" height="{IMAGE_PX}">'
        f"{drawing}</svg>"
    )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))


def flatten(image: Image.Image) -> Pixels:
    """Return a picture on white, centred on a square canvas of 64 px, as uint8 RGB."""
    drawing = image.convert("RGBA")
    side = max(drawing.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    square = canvas.convert("RGB")
    if side != IMAGE_PX:
        square = square.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.LANCZOS)
    return np.asarray(square)


def encode(pixels: Pixels, *, quality: int) -> bytes:
    """Return a drawing as WebP: lossless where that is no larger than lossy at `quality`."""
    image = Image.fromarray(pixels)
    lossless, lossy = io.BytesIO(), io.BytesIO()
    image.save(lossless, "WEBP", lossless=True, quality=75, method=4)
    image.save(lossy, "WEBP", quality=quality, method=6, use_sharp_yuv=True)
    return min(lossless.getvalue(), lossy.getvalue(), key=len)


def decode(pictures: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """Return stored pictures as one uint8 array [n, 64, 64, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures])
