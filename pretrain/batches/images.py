"""Pictures: pixels to a uint8 crop of the wanted size."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.options import CropOptions, Interpolation, Resize

CROP_DRAWS = 4


def crop_box(
    height: int, width: int, options: CropOptions, draws: NDArray[np.float64]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop; draws (4,) uniform in [0, 1).

    Area uniform in [area_min, area_max], log aspect uniform in ±log(aspect_max), as torchvision's
    RandomResizedCrop; a crop that does not fit is trimmed to the picture instead of redrawn, so
    that the number of draws is fixed.
    """
    area = height * width * (options.area_min + draws[0] * (options.area_max - options.area_min))
    aspect = math.exp((2 * draws[1] - 1) * math.log(options.aspect_max))
    crop_width = min(max(round(math.sqrt(area * aspect)), 1), width)
    crop_height = min(max(round(math.sqrt(area / aspect)), 1), height)
    top = int(draws[2] * (height - crop_height + 1))
    left = int(draws[3] * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def centre_box(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest square in the middle: evaluation's crop."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def resize(
    picture: NDArray[np.uint8],
    box: tuple[int, int, int, int],
    image_px: int,
    mode: Interpolation = "bicubic",
) -> NDArray[np.uint8]:
    """(image_px, image_px, 3): the box, resized and antialiased, in uint8."""
    top, left, height, width = box
    crop = picture[top : top + height, left : left + width]
    if crop.shape[:2] == (image_px, image_px):
        return crop
    pixels: Tensor = torch.from_numpy(np.require(crop, requirements="W")).permute(2, 0, 1)[
        None
    ]  # channels-last view
    resized = F.interpolate(pixels, size=(image_px, image_px), mode=mode, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def evaluation_pixels(
    picture: NDArray[np.uint8], image_px: int, how: Resize = "shortest_side_crop"
) -> NDArray[np.uint8]:
    """(image_px, image_px, 3): what evaluation and inference show the model of a picture."""
    height, width = picture.shape[:2]
    if how == "squash":
        return resize(picture, (0, 0, height, width), image_px, "bilinear")
    return resize(picture, centre_box(height, width), image_px)
