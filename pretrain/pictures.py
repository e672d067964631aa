"""The one treatment of every picture, in training data and at inference: upright, opaque, 8-bit.

Pillow and numpy only: data preparation must not import torch.
"""

import numpy as np
from PIL import Image

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


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture as people see it: upright by its EXIF, 8-bit RGB, white where transparent.

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
    """8-bit RGB: CMYK converted, transparency on white, 16-bit scaled to 8."""
    if picture.mode.startswith("I"):
        return scale_16_bit(picture)
    if picture.mode == "F":
        raise ValueError("a picture of floats has no defined range: convert it to 8 or 16 bits")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        rgb = Image.new("RGB", layer.size, (255, 255, 255))
        rgb.paste(layer, mask=layer.getchannel("A"))
        return rgb
    return picture.convert("RGB")


def scale_16_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits a pixel to RGB of 8; Pillow's own conversion clips at 255 instead."""
    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(
            f"a picture of integers from {grey.min()} to {grey.max()}: convert it to 8 or 16 bits"
        )
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
