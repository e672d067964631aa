"""Augmentation equals the steps that it names, one after the other, in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pretrain.base import compat
from pretrain.batches.augment import AUGMENT_DRAWS, prepare
from pretrain.batches.images import resize
from pretrain.batches.options import AugmentOptions

LUMA = np.array([0.299, 0.587, 0.114])
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.manual_seed(1)
    )


def uniform_draws(count: int) -> torch.Tensor:
    return torch.rand(count, AUGMENT_DRAWS, generator=torch.manual_seed(2))


def recoloured(picture: NDArray[np.uint8], draw: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, H, W) of one picture by the textbook: brightness, contrast about the mean grey, one
    factor a channel, saturation about each pixel's grey."""
    pixels = picture.astype(np.float64) / 255
    pixels = pixels * (1 + (2 * draw[5] - 1) * 0.3)
    mean = (pixels @ LUMA).mean()
    pixels = mean + (pixels - mean) * (1 + (2 * draw[6] - 1) * 0.5)
    pixels = pixels * (1 + (2 * draw[8:11] - 1) * 0.2)
    grey = (pixels @ LUMA)[:, :, None]
    saturation = 0.0 if draw[11] < 0.4 else 1 + (2 * draw[7] - 1) * 0.4
    pixels = np.clip(grey + (pixels - grey) * saturation, 0, 1)
    return ((pixels - IMAGENET[0]) / IMAGENET[1]).transpose(2, 0, 1)


def test_colours_equal_the_steps_one_by_one() -> None:
    images, draws = pictures(16, 8), uniform_draws(16)
    options = AugmentOptions(brightness=0.3, contrast=0.5, channel=0.2, saturation=0.4, grey=0.4)
    got = prepare(images, draws, options, "imagenet", torch.float32)
    assert 0 < int((draws[:, 11] < 0.4).sum()) < 16, "both grey and coloured pictures are needed"
    for i in range(16):
        want = recoloured(images[i].numpy(), draws[i].double().numpy())
        difference = float(np.abs(got[i].double().numpy() - want).max())
        assert difference < 2e-5, f"picture {i} differs by {difference}"


def test_hue_grey_and_the_jitter_s_probability_equal_torchvision_s_steps() -> None:
    compat.make_torchvision_importable()
    from torchvision.transforms.v2 import functional as steps

    images, draws = pictures(32, 8), uniform_draws(32)
    images[0, :4] = images[0, :4, :, :1]  # grey pixels have no hue
    images[1, 0] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    images[2, 0] = torch.tensor([255, 255, 0], dtype=torch.uint8)
    options = AugmentOptions(
        brightness=0.32, contrast=0.32, saturation=0.32, hue=0.08, jitter=0.8, grey=0.2
    )
    got = prepare(images, draws, options, "imagenet", torch.float32)
    jittered, grey = draws[:, 13] < 0.8, draws[:, 11] < 0.2
    assert all(0 < int(chosen.sum()) < 32 for chosen in (jittered, grey, jittered & grey))
    mean, std = torch.from_numpy(IMAGENET)[:, :, None, None]
    for i in range(32):
        pixels = images[i].permute(2, 0, 1).double() / 255
        if jittered[i]:
            # One clamp after the three factors; torchvision clamps, and rounds, after each.
            factors = (1 + (2 * draws[i, 5:8].double() - 1) * 0.32).tolist()
            pixels = pixels * factors[0]
            luma = torch.from_numpy(LUMA)
            centre = torch.einsum("c,chw->hw", luma, pixels).mean()
            pixels = centre + (pixels - centre) * factors[1]
            own = torch.einsum("c,chw->hw", luma, pixels)
            pixels = (own + (pixels - own) * factors[2]).clamp(0, 1)
            turn = float(2 * draws[i, 12].double() - 1) * 0.08
            pixels = steps.adjust_hue(pixels, turn)
        if grey[i]:
            pixels = torch.einsum("c,chw->hw", torch.from_numpy(LUMA), pixels).expand(3, -1, -1)
        difference = float((got[i].double() - (pixels - mean) / std).abs().max())
        assert difference < 1e-4, f"picture {i} differs by {difference}"


@pytest.mark.parametrize("hue", [-0.1, 0.6, float("nan")])
def test_a_hue_beyond_the_circle_is_named(hue) -> None:
    assert str(AugmentOptions(hue=hue).mistake()).startswith(f"hue={hue}")


@pytest.mark.parametrize(("name", "pillow"), [("bicubic", "BICUBIC"), ("bilinear", "BILINEAR")])
def test_a_crop_is_resized_as_pillow_resizes_it(name, pillow) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    found = resize(picture, (3, 5, 80, 100), 40, name).astype(int)
    part = Image.fromarray(picture[3:83, 5:105])
    wanted = np.asarray(part.resize((40, 40), getattr(Image.Resampling, pillow))).astype(int)
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize(
    ("options", "column", "value", "moved"),
    [
        (AugmentOptions(flip=0.5), 4, 0.1, lambda p: p.flip(-1)),
        (AugmentOptions(flip=0.5), 4, 0.9, lambda p: p),
        (AugmentOptions(rotate_rad=float(np.pi / 2)), 1, 1.0, lambda p: p.rot90(1, (-2, -1))),
    ],
)
def test_moves_that_need_no_interpolation_are_exact(options, column, value, moved) -> None:
    images = pictures(3, 8)
    draws = torch.full((3, AUGMENT_DRAWS), 0.5)
    draws[:, column] = value
    plain = prepare(images, None, AugmentOptions(), "imagenet", torch.float32)
    got = prepare(images, draws, options, "imagenet", torch.float32)
    difference = float((got - moved(plain)).abs().max())
    assert difference < 1e-4, f"differs by {difference}"


def test_a_shift_moves_by_its_share_of_the_side() -> None:
    images = pictures(1, 8)
    draws = torch.full((1, AUGMENT_DRAWS), 0.5)
    draws[:, 2] = 1.0  # the largest shift to one side: a quarter of eight pixels
    plain = prepare(images, None, AugmentOptions(), "imagenet", torch.float32)
    got = prepare(images, draws, AugmentOptions(shift=0.25), "imagenet", torch.float32)
    assert torch.allclose(got[..., :-2], plain[..., 2:], atol=1e-4)


def test_no_option_and_no_draw_change_nothing() -> None:
    images = pictures(4, 8)
    plain = prepare(images, None, AugmentOptions(), "imagenet", torch.float32)
    drawn = prepare(images, uniform_draws(4), AugmentOptions(), "imagenet", torch.float32)
    assert torch.equal(plain, drawn)
    want = (images[0].double().numpy() / 255 - IMAGENET[0]) / IMAGENET[1]
    assert np.abs(plain[0].double().numpy() - want.transpose(2, 0, 1)).max() < 1e-5
