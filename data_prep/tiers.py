"""A picture's file of every tier, by the least work that keeps its looks."""

import math
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data_prep.jpeg import without_metadata
from data_prep.pictures import PictureLimits, Tier, open_checked, upright
from pretrain.pictures import UPRIGHT, read_orientation, srgb_transform

# Up to this shortest side the chroma planes keep full resolution: halved, a 64 px drawing would
# have 32 px of colour, fewer than a model trained at 64 px sees.
FULL_CHROMA_PX = 128
# What is shrunk has at least so many times the side of what it becomes: a JPEG is decoded no
# larger, and a tier is made of the next larger one. Measured in docs/speed.md.
MARGIN = 2
Pixels = NDArray[np.uint8]  # (H, W, 3) sRGB


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A picture as it is stored."""

    width: int  # upright, of the original
    height: int
    files: dict[str, bytes]  # a baseline RGB JPEG without metadata for every tier


def store(data: bytes | None, limits: PictureLimits, tiers: list[Tier]) -> Stored:
    """The tiers' files of a picture's file. Each tier's shortest side is its own, or the picture's
    if that is less.

    A JPEG whose pixels are upright sRGB already is decoded no larger than needed, and is its own
    file of the `full` tier where it is a clean baseline one. RejectedError as `open_checked` and
    `upright`.
    """
    picture = open_checked(data, limits)
    assert data is not None
    if _is_upright_srgb_jpeg(picture):
        try:
            return _store_jpeg(data, picture.size, tiers)
        except ValueError:
            pass  # Pillow takes more of the slightly damaged ones, and names what is wrong
    pixels = np.asarray(upright(picture))
    height, width, _ = pixels.shape
    return Stored(width=width, height=height, files=_encode_all(pixels, (width, height), tiers))


def _is_upright_srgb_jpeg(picture: Image.Image) -> bool:
    """By the header of a picture of which nothing is decoded yet."""
    if picture.format != "JPEG" or picture.mode != "RGB":
        return False
    profile = picture.info.get("icc_profile")
    if profile and srgb_transform(profile, "RGB") is not None:
        return False
    return "exif" not in picture.info or read_orientation(picture) not in UPRIGHT


def _store_jpeg(data: bytes, size: tuple[int, int], tiers: list[Tier]) -> Stored:
    """ValueError where it is not decoded without a complaint: what is kept must be whole."""
    width, height = size
    files: dict[str, bytes] = {}
    for tier in tiers:
        if tier.shortest_px is None and (kept := without_metadata(data)) is not None:
            files[tier.name] = kept
    missing = [tier for tier in tiers if tier.name not in files]
    # At least one pixel a side: the whole file is read, whatever is wanted of it.
    wanted = [_size(size, tier, MARGIN) for tier in missing] or [(1, 1)]
    least_width, least_height = max(wanted)
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_width=least_width, min_height=least_height, strict=True
    )
    files |= _encode_all(pixels, size, missing, _extent(size, pixels))
    return Stored(width=width, height=height, files={tier.name: files[tier.name] for tier in tiers})


def _size(size: tuple[int, int], tier: Tier, times: int = 1) -> tuple[int, int]:
    """(width, height) of a tier's picture, or so many times it, but never more than the own."""
    shortest = min(size)
    if tier.shortest_px is None or shortest <= tier.shortest_px * times:
        return size
    width, height = (max(1, round(side * tier.shortest_px / shortest)) for side in size)
    return min(width * times, size[0]), min(height * times, size[1])


def _extent(size: tuple[int, int], pixels: Pixels) -> tuple[float, float]:
    """(width, height) that a picture of this size covers of its scaled pixels.

    libjpeg scales by eighths and rounds up: the last pixel of a side is covered in part, and taken
    for a whole one it would shift all the others.
    """
    height, width, _ = pixels.shape
    for eighths in range(1, 9):
        sides = [side * eighths / 8 for side in size]
        if [math.ceil(side) for side in sides] == [width, height]:
            return sides[0], sides[1]
    return width, height


def _encode_all(
    pixels: Pixels,
    size: tuple[int, int],
    tiers: list[Tier],
    extent: tuple[float, float] | None = None,
) -> dict[str, bytes]:
    """The files of tiers of a picture of this size, which covers this extent of `pixels`."""
    extent = extent or (pixels.shape[1], pixels.shape[0])
    files: dict[str, bytes] = {}
    for tier in sorted(tiers, key=lambda tier: -min(_size(size, tier))):
        width, height = _size(size, tier)
        made = pixels
        if pixels.shape[:2] != (height, width):
            lanczos = Image.Resampling.LANCZOS
            box = (0, 0, *extent)
            made = np.asarray(Image.fromarray(pixels).resize((width, height), lanczos, box))
        files[tier.name] = encode(made, tier)
        following = [min(_size(size, other)) for other in tiers if other.name not in files]
        if min(width, height) >= MARGIN * max(following, default=0):
            pixels, extent = made, (width, height)
    return {tier.name: files[tier.name] for tier in tiers}


def encode(pixels: Pixels, tier: Tier) -> bytes:
    """A baseline JPEG of a tier's quality."""
    sampling = "444" if min(pixels.shape[:2]) <= FULL_CHROMA_PX else "420"
    try:
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels),
            quality=tier.jpeg_quality,
            colorspace="RGB",
            colorsubsampling=sampling,
            fastdct=False,
        )
    except ValueError as error:  # no picture's fault
        raise RuntimeError(f"tier {tier.name} cannot be written: {error}") from error
