"""A picture's file of every tier, by the least work that keeps its looks.

Pictures are shrunk as training does it: by torch's antialiased bicubic filter, which gives what
Pillow's gives in a quarter of the time (docs/speed.md).
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data_prep.pictures.jpeg import without_metadata
from data_prep.pictures.limits import PictureLimits, Tier, open_checked, upright
from pretrain.dataset.pictures import UPRIGHT, read_orientation, srgb_transform

# Up to this shortest side the chroma planes keep full resolution: halved, a 64 px drawing would
# have 32 px of colour, fewer than a model trained at 64 px sees.
_FULL_CHROMA_PX = 128
# What is shrunk has at least so many times the side of what it becomes: a JPEG that is decoded to
# a part of its size, and a larger tier of which a smaller is made. Measured in docs/speed.md.
DECODED_MARGIN, TIER_MARGIN = 1.25, 2
# libjpeg-turbo decodes to any number of eighths, but to others than these slower than to the whole.
_PARTS = (8, 4, 2)
_Pixels = NDArray[np.uint8]  # (H, W, 3) sRGB


@dataclass(frozen=True, kw_only=True)
class _TierFiles:
    """A picture as it is stored."""

    width: int  # upright, of the original
    height: int
    files: dict[str, bytes]  # a baseline RGB JPEG without metadata for every tier


def store(data: bytes | None, limits: PictureLimits, tiers: list[Tier]) -> _TierFiles:
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
            pass  # Pillow takes more of those that are not damaged
    pixels = np.array(upright(picture, data))
    height, width, _ = pixels.shape
    size = (width, height)
    return _TierFiles(width=width, height=height, files=_encode_all(pixels, size, tiers, size))


def _is_upright_srgb_jpeg(picture: Image.Image) -> bool:
    """By the header of a picture of which nothing is decoded yet."""
    if picture.format != "JPEG" or picture.mode != "RGB":
        return False
    profile = picture.info.get("icc_profile")
    if profile and srgb_transform(profile, "RGB") is not None:
        return False
    return read_orientation(picture) not in UPRIGHT  # by Exif, or else by XMP


def _store_jpeg(data: bytes, size: tuple[int, int], tiers: list[Tier]) -> _TierFiles:
    """ValueError where it is not decoded without a complaint: what is kept must be whole."""
    width, height = size
    files: dict[str, bytes] = {}
    for tier in tiers:
        if tier.shortest_px is None and (kept := without_metadata(data)) is not None:
            files[tier.name] = kept
    missing = [tier for tier in tiers if tier.name not in files]
    # The whole file is read, whatever is wanted of it.
    part = _part(size, missing)
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_width=-(-width // part), min_height=-(-height // part), strict=True
    )
    files |= _encode_all(pixels, size, missing, (width / part, height / part))
    return _TierFiles(
        width=width, height=height, files={tier.name: files[tier.name] for tier in tiers}
    )


def _part(size: tuple[int, int], tiers: list[Tier]) -> int:
    """By how much the sides of a JPEG are divided when it is decoded for these tiers."""
    if not tiers:
        return _PARTS[0]
    wanted = max(_size(size, tier)[0] for tier in tiers)
    return next((part for part in _PARTS if size[0] / part >= wanted * DECODED_MARGIN), 1)


def _size(size: tuple[int, int], tier: Tier) -> tuple[int, int]:
    """(width, height) of a tier's picture."""
    shortest = min(size)
    if tier.shortest_px is None or shortest <= tier.shortest_px:
        return size
    width, height = (max(1, round(side * tier.shortest_px / shortest)) for side in size)
    return width, height


def _encode_all(
    pixels: _Pixels,
    size: tuple[int, int],
    tiers: list[Tier],
    extent: tuple[float, float],
) -> dict[str, bytes]:
    """The files of tiers of a picture of this size.

    It covers this extent (width, height) of `pixels`: libjpeg rounds up, so the last pixel of a
    side may be covered in part, and taken for a whole one it would shift all the others.
    """
    files: dict[str, bytes] = {}
    for tier in sorted(tiers, key=lambda tier: -min(_size(size, tier))):
        width, height = _size(size, tier)
        made = pixels
        if pixels.shape[:2] != (height, width):
            made = shrink(pixels, (width, height), extent)
        files[tier.name] = encode(made, tier)
        following = [min(_size(size, other)) for other in tiers if other.name not in files]
        if min(width, height) >= TIER_MARGIN * max(following, default=0):
            pixels, extent = made, (width, height)
    return {tier.name: files[tier.name] for tier in tiers}


def shrink(pixels: _Pixels, size: tuple[int, int], extent: tuple[float, float]) -> _Pixels:
    """(height, width, 3) of an extent (width, height) of larger (H, W, 3) pixels."""
    import torch  # two seconds, for nothing but a build

    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    # A millionth of a pixel more, as the size is rounded down; it never reaches the next pixel.
    scale = [(side + 1e-6) / covered for side, covered in zip(size, extent, strict=True)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each core has a process of its own
    try:
        small = torch.nn.functional.interpolate(
            planes, scale_factor=(scale[1], scale[0]), mode="bicubic", antialias=True
        )
    finally:
        torch.set_num_threads(threads)
    shrunk: _Pixels = np.empty((size[1], size[0], 3), np.uint8)
    for colour, plane in enumerate(small[0].numpy()):
        shrunk[..., colour] = plane
    return shrunk


def encode(pixels: _Pixels, tier: Tier) -> bytes:
    """A baseline JPEG of a tier's quality."""
    sampling = "444" if min(pixels.shape[:2]) <= _FULL_CHROMA_PX else "420"
    try:
        return simplejpeg.encode_jpeg(
            pixels,
            quality=tier.jpeg_quality,
            colorspace="RGB",
            colorsubsampling=sampling,
            fastdct=False,
        )
    except ValueError as error:  # no picture's fault
        raise RuntimeError(f"tier {tier.name} cannot be written: {error}") from error
