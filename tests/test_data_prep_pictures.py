"""Any picture becomes an upright, opaque, 8-bit baseline JPEG that looks the same."""

import io
import struct

import numpy as np
import pytest
from data_prep_corpus import encoded, picture
from PIL import Image, JpegImagePlugin

from data_prep.pictures import PictureOptions, decode_picture, encode_tier, parse_tiers


def decode(data: bytes) -> np.ndarray:
    return np.asarray(decode_picture(data, PictureOptions(min_image_px=1))).astype(int)


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert found.shape == wanted.shape
    difference = np.abs(found.astype(int) - wanted.astype(int)).max()
    assert difference <= tolerance, f"largest difference {difference}"


@pytest.mark.parametrize("byteorder", ["PNG", "TIFF"])
def test_a_16_bit_ramp_keeps_its_gradient(byteorder: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (32, 1))
    found = decode(encoded(Image.fromarray(ramp), byteorder))
    assert_close(found[0, :, 0], np.arange(256), 1)
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()


def test_cmyk_becomes_rgb() -> None:
    wanted = picture(1)
    data = encoded(wanted.convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_close(decode(data), np.asarray(wanted), 12)


def test_transparency_shows_white() -> None:
    colours = np.zeros((20, 20, 4), dtype=np.uint8)
    colours[:, 10:] = (200, 0, 0, 255)
    colours[10:, :] = (0, 100, 0, 128)
    found = decode(encoded(Image.fromarray(colours)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 15].tolist() == [200, 0, 0]
    assert_close(found[15, 5], np.array([127, 177, 127]), 1)


def test_a_transparent_palette_colour_shows_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    found = decode(encoded(image, "PNG", transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255] and found[0, 7].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    """Stored as each orientation says, the picture always comes out as it was."""
    upright = np.asarray(picture(4, width=24, height=16))
    # The first stored row is the upright picture's ...; EXIF 2.32, tag 274.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert_close(decode(data), upright, 0)


def test_damaged_exif_does_not_cost_the_picture() -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + b"\xff" * 40
    data = encoded(picture(4), "JPEG", exif=exif)
    assert decode(data).shape == (72, 96, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert_close(decode(data)[10, 10], np.array([255, 0, 0]), 2)


def test_tiers_are_baseline_jpegs_without_metadata() -> None:
    source = picture(5, width=400, height=300)
    data = encoded(source, "JPEG", quality=95, comment=b"a secret", icc_profile=b"x" * 500)
    image = decode_picture(data, PictureOptions())
    for tier, size, sampling in zip(
        parse_tiers("64:90,160:90,full:95"),
        [(85, 64), (213, 160), (400, 300)],
        [0, 2, 2],  # full chroma up to 128 px: 4:4:4, above it 4:2:0
        strict=True,
    ):
        stored = encode_tier(image, tier)
        assert b"\xff\xc0" in stored and b"\xff\xc2" not in stored  # baseline, not progressive
        assert b"secret" not in stored and b"ICC_PROFILE" not in stored
        found = Image.open(io.BytesIO(stored))
        assert found.size == size and found.mode == "RGB"
        assert JpegImagePlugin.get_sampling(found) == sampling
        wanted = np.asarray(source.resize(size, Image.Resampling.LANCZOS)).astype(float)
        error = ((np.asarray(found) - wanted) ** 2).mean()
        psnr = 10 * np.log10(255**2 / error)
        assert psnr > 38, f"{tier.name}: {psnr:.1f} dB"


def test_no_picture_is_enlarged() -> None:
    image = decode_picture(encoded(picture(5, width=40, height=30)), PictureOptions())
    [tier] = parse_tiers("160:90")
    assert Image.open(io.BytesIO(encode_tier(image, tier))).size == (40, 30)


def test_a_palette_or_grey_picture_becomes_rgb() -> None:
    for mode in ("L", "P", "1", "LA", "RGBA"):
        image = picture(6).convert(mode)
        wanted = np.asarray(image.convert("RGB"))
        assert_close(decode(encoded(image)), wanted, 0)


@pytest.mark.parametrize("text", ["", "160", "160:0", "160:101", "-1:90", "full:x", "8:90,8:80"])
def test_tiers_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tiers="):
        PictureOptions(tiers=text)
