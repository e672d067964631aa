"""Encoded pictures of any kind to clean baseline JPEGs, one per tier."""

import warnings
from dataclasses import dataclass

from PIL import Image

from data_prep.rejection import RejectedError
from pretrain.dataset.jpeg import check_coded
from pretrain.dataset.pictures import TooLargeError, decode, open_picture, upright_rgb

# Every tier is JPEG, and libjpeg writes no longer side (JPEG_MAX_DIMENSION in its jmorecfg.h).
_SIDE_PX_CAP = 65_500


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """How pictures are judged"""

    min_image_px: int = 16
    """A picture with a shorter shortest side is rejected (image_too_small)."""
    max_aspect: float | None = None
    """A picture whose longer side exceeds the shorter by this factor is rejected (image_aspect);
    null: no limit."""

    def __post_init__(self) -> None:
        if self.min_image_px < 1:
            raise ValueError(f"min_image_px={self.min_image_px}: choose 1 or more")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect}: choose 1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class PictureOptions(PictureLimits):
    """How pictures are judged and stored"""

    tiers: str = "160:90,320:90"
    """Image tiers, SHORTEST_PX:JPEG_QUALITY by commas; `full` keeps the size. Nothing is ever
    enlarged, so leave out a tier that no picture exceeds. 160 serves training at up to 160 px, 320
    up to 320 px, `full` what is larger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_tiers(self.tiers)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One size in which every picture is stored."""

    name: str  # also the folder's name
    shortest_px: int | None
    jpeg_quality: int


def parse_tiers(text: str) -> list[Tier]:
    """Tiers of e.g. "160:90,320:90". ValueError shows the part that is not understood."""
    tiers: list[Tier] = []
    for part in text.split(","):
        name, _, quality = part.strip().partition(":")
        shortest_px = None if name == "full" else (int(name) if name.isdecimal() else 0)
        if shortest_px == 0 or not quality.isdecimal() or not 1 <= int(quality) <= 100:
            raise ValueError(
                f"tiers={text!r}: {part!r} is not understood; write SHORTEST_PX:QUALITY or "
                "full:QUALITY with quality 1 to 100, e.g. --tiers 160:90,320:90"
            )
        if name in [tier.name for tier in tiers]:
            raise ValueError(f"tiers={text!r}: {name!r} given twice")
        tiers.append(Tier(name=name, shortest_px=shortest_px, jpeg_quality=int(quality)))
    return tiers


def open_checked(data: bytes | None, options: PictureLimits) -> Image.Image:
    """The picture, judged by its header, nothing decoded.

    RejectedError: image_missing, image_unreadable, image_truncated, image_too_large,
    image_too_small, image_aspect.
    """
    if data is None:
        raise RejectedError("image_missing")
    picture = _open_header(data)
    _check_size(picture, options)
    return picture


def upright(picture: Image.Image, data: bytes) -> Image.Image:
    """The first frame of an opened file, upright, 8-bit sRGB, on white where transparent, without
    metadata.

    RejectedError: image_unreadable, image_truncated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        try:
            check_coded(data)
            return upright_rgb(picture)
        # Damaged files make decoders raise nearly anything, and one must not end the run.
        except Exception as error:
            cut = _is_truncation(error)
            raise RejectedError("image_truncated" if cut else "image_unreadable") from error


def measure_in_place(data: bytes | None, options: PictureLimits) -> tuple[int, int]:
    """(width, height), upright, of a picture that stays as it is, decoded as training will.

    RejectedError as `open_checked` and `upright`.
    """
    open_checked(data, options)
    assert data is not None
    try:
        height, width, _ = decode(data).shape
    except ValueError as error:
        raise RejectedError(
            "image_truncated" if _is_truncation(error) else "image_unreadable"
        ) from error
    return width, height


def _open_header(data: bytes) -> Image.Image:
    """The picture, its size known, nothing decoded. RejectedError if the header is no good."""
    try:
        return open_picture(data)
    except TooLargeError as error:
        raise RejectedError("image_too_large") from error
    except ValueError as error:
        # WebP says in its first bytes how long it is; Pillow only says that it cannot read it.
        cut = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
        raise RejectedError("image_truncated" if cut else "image_unreadable") from error


def _check_size(picture: Image.Image, options: PictureLimits) -> None:
    """RejectedError if the picture is too large, too small or too long, by its header."""
    shortest, longest = min(picture.size), max(picture.size)
    if longest > _SIDE_PX_CAP:
        raise RejectedError("image_too_large")
    if shortest < options.min_image_px:
        raise RejectedError("image_too_small")
    if options.max_aspect is not None and longest > options.max_aspect * shortest:
        raise RejectedError("image_aspect")


def _is_truncation(error: Exception) -> bool:
    """Whether a decoder's error says that the file ends early, rather than being malformed."""
    text = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in text or "premature" in text
