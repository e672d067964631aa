"""The one treatment of every picture, in training data and at inference: upright, opaque, 8-bit.

Pillow, simplejpeg and numpy only: data preparation must not import torch.
"""

import io
import warnings
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from pretrain.dataset.jpeg import (
    FRAME_HEADERS,
    SCANS_CAP,
    START_OF_JPEG,
    check_coded,
    jpeg_segments,
    read_frame,
    refuse_damage,
    walk_scans,
)

# Only these decoders may run: a corpus must not reach Pillow's less trodden ones (EPS starts a
# PostScript interpreter).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
# How files of these are named.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")
# What an APP segment (marker) of a JPEG begins with that the fast decoder leaves aside.
NEEDS_PILLOW = {0xE1: b"Exif\0\0", 0xE2: b"ICC_PROFILE\0"}
XMP, XMP_ORIENTATION = b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"

ORIENTATION_TAG = 0x0112
# EXIF 2.32, table "Orientation": value -> what brings the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Colour space in bytes 16 to 19 of an ICC profile (ICC.1, 7.2.6) -> the mode that it describes.
PROFILE_SPACE = slice(16, 20)
PROFILE_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
# The many profiles called sRGB differ by rounding; what they would change is not worth the time.
SAME_COLOUR = 2  # of 255
# 192 MB decoded; a header may claim 60000x60000 in a few bytes: checked before pixels are read.
PIXELS_CAP = 64_000_000
# Of a PNG's compressed texts and profile. Pillow's own cap of 1 MiB refuses pictures of editors.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20


class TooLargeError(ValueError):
    """A picture of more than PIXELS_CAP, or a JPEG of more than SCANS_CAP."""


def decode(file: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) sRGB, upright; ValueError on anything but a whole, sane picture of FORMATS.

    JPEGs as `build` stores them, the usual ones elsewhere, take the fast decoder; what has another
    format, four colours, EXIF or a colour profile takes some times as long.
    """
    if is_plain_jpeg(file):
        check_scans(file)
        try:
            return decode_jpeg(file)
        except ValueError as error:
            refuse_damage(file, error)
    picture = open_picture(file)
    check_coded(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        try:
            return np.asarray(upright_rgb(picture))
        # Damaged files make decoders raise nearly anything.
        except Exception as error:
            raise ValueError(f"no whole picture of {', '.join(FORMATS)}: {error}") from error


def open_picture(file: bytes) -> Image.Image:
    """A picture of FORMATS by its header, nothing decoded yet.

    ValueError where it is none; TooLargeError, one too, where it has more than PIXELS_CAP.
    """
    check_scans(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of big pictures, which are judged here
        try:
            picture = Image.open(io.BytesIO(file), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise TooLargeError(f"over the cap of {PIXELS_CAP:,} pixels") from error
        except UnidentifiedImageError as error:  # its own words name an object in memory
            raise ValueError(f"no whole picture of {', '.join(FORMATS)}") from error
        except Exception as error:
            raise ValueError(f"no whole picture of {', '.join(FORMATS)}: {error}") from error
    check_pixels(*picture.size)
    return picture


def decode_jpeg(file: bytes) -> NDArray[np.uint8]:
    """The same of a JPEG as `build` stores them, without a look whether it is one."""
    height, width, _ = read_frame(file)
    check_pixels(width, height)
    return simplejpeg.decode_jpeg(file, colorspace="RGB", strict=True)


def check_scans(file: bytes) -> None:
    """TooLargeError where a JPEG has more than SCANS_CAP scans."""
    if file.startswith(START_OF_JPEG) and walk_scans(file)[0] > SCANS_CAP:
        raise TooLargeError(f"a JPEG of over {SCANS_CAP} scans")


def check_pixels(width: int, height: int) -> None:
    """TooLargeError beyond PIXELS_CAP."""
    if height * width > PIXELS_CAP:
        raise TooLargeError(f"{width} x {height} pixels: over the cap of {PIXELS_CAP:,}")


def is_plain_jpeg(file: bytes) -> bool:
    """Whether it is a JPEG whose pixels are already upright RGB or grey by its headers; of one that
    is damaged, the decoder will say so."""
    if not file.startswith(START_OF_JPEG):
        return False
    for marker, place, end in jpeg_segments(file):
        begin = NEEDS_PILLOW.get(marker)
        if begin is not None and file.startswith(begin, place + 4):
            return False
        # A turn that only XMP tells; most XMP tells none, and need not cost the slow decoder.
        if (
            marker == 0xE1
            and file.startswith(XMP, place + 4)
            and XMP_ORIENTATION in file[place:end]
        ):
            return False
        if marker in FRAME_HEADERS and file[place + 9 : place + 10] == b"\x04":  # colours
            return False
    return True


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture as people see it: upright by its EXIF, 8-bit sRGB, white where transparent.

    ValueError where the pixels have no defined range (floats, or integers outside 16 bits); a
    damaged file raises what its decoder raises.
    """
    picture.load()
    orientation = read_orientation(picture)
    rgb = to_rgb(picture)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def read_orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 (upright) if there is none or the EXIF block is damaged."""
    try:
        return picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit sRGB by the picture's ICC profile: transparency on white, 16-bit scaled to 8."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I"):
        return to_srgb(scale_16_bit(picture), profile)
    if picture.mode == "F":
        raise ValueError("a picture of floats has no fixed range: convert it to 8 or 16 bits")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        colours = layer.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
        rgb = Image.new("RGB", layer.size, (255, 255, 255))
        rgb.paste(to_srgb(colours, profile), mask=layer.getchannel("A"))
        return rgb
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in PROFILE_MODES.values():
        picture = picture.convert("RGB")
    return to_srgb(picture, profile)


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode L, RGB or CMYK as sRGB; a profile that does not fit it is ignored."""
    transform = srgb_transform(profile, picture.mode) if profile else None
    if transform is None:
        return picture.convert("RGB")
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # it is None only where the picture itself is changed
    return converted


@lru_cache(maxsize=8)  # a corpus has few profiles in turn; each is up to some MB
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings pictures of this mode from the profile to sRGB.

    None where the profile cannot be read, describes another mode, or is sRGB itself.
    """
    if PROFILE_MODES.get(profile[PROFILE_SPACE]) != mode:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            # The same white stays white, black black: what photo editors do by default.
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError):
        return None
    # CMYK has no conversion without a profile that could be the same.
    return None if mode != "CMYK" and changes_nothing(transform, mode) else transform


def changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether no colour of a fine grid is moved, by more than rounding."""
    steps = np.linspace(0, 255, 18, dtype=np.uint8)  # 15 apart
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    colours = Image.fromarray(grid).convert(mode)
    converted = ImageCms.applyTransform(colours, transform)
    before = np.asarray(colours.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(converted) - before).max() <= SAME_COLOUR)


def scale_16_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits a pixel to 8; Pillow's own conversion clips at 255 instead."""
    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(
            f"a picture of integers from {grey.min()} to {grey.max()}: convert it to 8 or 16 bits"
        )
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
