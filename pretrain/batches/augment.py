"""From uint8 pictures to model input, on the device: augmentation and normalisation."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batches.options import AugmentOptions, Normalisation

AUGMENT_DRAWS = 14
# ImageNet: all CLIPA v2 and JAX models; OpenAI: clipa_torch v1 (facts of the released configs).
# Inception (timm's and open_clip's name): -1 to 1, SigLIP.
MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A batch's pictures, made model input a slice at a time: a whole batch in fp32 is large."""

    images: Tensor  # uint8 (B, H, W, 3)
    draws: Tensor  # fp32 (B, AUGMENT_DRAWS)
    options: AugmentOptions
    normalisation: Normalisation
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Tensor:
        """(b, 3, H, W): the same whenever it is asked for."""
        return prepare(
            self.images[part], self.draws[part], self.options, self.normalisation, self.dtype
        )


def prepare(
    images: Tensor,
    draws: Tensor | None,
    options: AugmentOptions,
    normalisation: Normalisation,
    dtype: torch.dtype,
) -> Tensor:
    """Model input (B, 3, H, W) of `dtype` from uint8 images (B, H, W, 3) on the same device.

    draws (B, AUGMENT_DRAWS) uniform in [0, 1) fp32, or None to leave the pictures as they are.
    """
    planes = images.permute(0, 3, 1, 2)
    pixels = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if draws is not None and options.moves:
        pixels = _move(pixels, draws, options)
    if draws is not None and options.recolours:
        pixels = _recolour(pixels, draws, options)
    mean, std = (_constant(values, pixels.device) for values in MEAN_STD[normalisation])
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None]).to(dtype)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once: the host waits for the device to copy it there."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _spread(draw: Tensor, width: float) -> Tensor:
    """Uniform in ±width."""
    return (2 * draw - 1) * width


def _move(pixels: Tensor, draws: Tensor, options: AugmentOptions) -> Tensor:
    """Rotation, zoom, shift and flip as one affine map; what comes in from outside is the edge."""
    zoom = options.scale_min + draws[:, 0] * (options.scale_max - options.scale_min)
    angle = _spread(draws[:, 1], options.rotate_rad)
    mirror = 1 - 2 * (draws[:, 4] < options.flip).float()
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    x, y = 2 * _spread(draws[:, 2], options.shift), 2 * _spread(draws[:, 3], options.shift)
    matrix = torch.stack(
        [torch.stack([cos * mirror, -sin, x], 1), torch.stack([sin * mirror, cos, y], 1)], 1
    )
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _recolour(pixels: Tensor, draws: Tensor, options: AugmentOptions) -> Tensor:
    """Brightness, contrast, channels, then saturation: all are linear in a pixel's colour and the
    picture's mean, so they are one 3x3 matrix and one offset a picture, clamped to [0, 1]. Then
    hue, and with it grey last, since a turned hue has another grey."""
    jitters = (draws[:, 13:14] < options.jitter).float()

    def factor(columns: slice, width: float) -> Tensor:
        return 1 + _spread(draws[:, columns], width) * jitters

    luma = _constant(_LUMA, pixels.device)
    brightness = factor(slice(5, 6), options.brightness)  # (B, 1)
    contrast = factor(slice(6, 7), options.contrast)  # (B, 1)
    channels = factor(slice(8, 11), options.channel)  # (B, 3)
    keep = draws[:, 11:12] >= options.grey
    saturation = factor(slice(7, 8), options.saturation)[:, :, None]  # (B, 1, 1)
    if not options.hue:
        saturation = saturation * keep[:, :, None]
    mix = saturation * torch.eye(3, device=pixels.device) + (1 - saturation) * luma
    mean = brightness[:, 0] * (pixels.mean((2, 3)) @ luma)
    matrix = mix * (brightness * contrast * channels)[:, None, :]
    offset = (mix * (mean[:, None] * (1 - contrast) * channels)[:, None, :]).sum(2, keepdim=True)
    colours = torch.baddbmm(offset, matrix, pixels.flatten(2)).clamp_(0, 1)
    if options.hue:
        colours = _turn_hue(colours, _spread(draws[:, 12:13], options.hue) * jitters)
        colours = torch.where(keep[:, :, None], colours, (luma @ colours)[:, None])
    return colours.view_as(pixels)


def _turn_hue(colours: Tensor, turn: Tensor) -> Tensor:
    """Colours (B, 3, N) with their hue in HSV turned by a share (B, 1) of the circle; value and
    saturation stay. Over sixths h of the circle, r, g, b = V - C clamp(min(k, 4 - k), 0, 1) with
    k = (5, 3, 1) + h modulo 6, V the largest of the three and C what it is above the smallest."""
    value, largest = colours.max(1)
    chroma = value - colours.amin(1)
    across = (colours.roll(-1, 1) - colours.roll(-2, 1)).gather(1, largest[:, None])[:, 0]
    sixths = 2 * largest + across / torch.where(chroma > 0, chroma, 1) + 6 * turn
    k = torch.stack([(n + sixths) % 6 for n in (5, 3, 1)], 1)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)
