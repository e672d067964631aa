"""Any picture becomes an upright, opaque, 8-bit baseline JPEG that looks the same."""

import io
import struct

import numpy as np
import pytest
from data_prep_corpus import encoded, picture
from PIL import Image, JpegImagePlugin
from sklearn.datasets import load_sample_images
from test_colours import display_p3

from data_prep.pictures.jpeg import without_metadata
from data_prep.pictures.limits import (
    PictureOptions,
    measure_in_place,
    open_checked,
    parse_tiers,
    upright,
)
from data_prep.pictures.tiers import shrink, store
from data_prep.rejection import RejectedError
from pretrain.dataset.pictures import decode as decode_picture

ANY = PictureOptions(min_image_px=1)


def decode(data: bytes) -> np.ndarray:
    """By Pillow, and the same by way of the stored file."""
    found = np.asarray(upright(open_checked(data, ANY), data)).astype(int)
    [stored] = store(data, ANY, parse_tiers("full:100")).files.values()
    kept = np.asarray(Image.open(io.BytesIO(stored))).astype(int)
    assert kept.shape == found.shape and np.abs(kept - found).mean() < 2
    return found


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = ((found.astype(float) - wanted.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


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


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turn_that_only_xmp_tells_is_built_and_indexed_alike(orientation: int) -> None:
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/></rdf:RDF>'
        "</x:xmpmeta>"
    )
    data = encoded(picture(4, width=200, height=136), "JPEG", xmp=xmp.encode())
    width, height = measure_in_place(data, ANY)
    stored = store(data, ANY, parse_tiers("full:95"))
    assert (stored.width, stored.height) == (width, height)
    wanted = decode_picture(data).astype(int)
    found = np.asarray(Image.open(io.BytesIO(stored.files["full"]))).astype(int)
    assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 3


def test_damaged_exif_does_not_cost_the_picture() -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + b"\xff" * 40
    data = encoded(picture(4), "JPEG", exif=exif)
    assert decode(data).shape == (72, 96, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert_close(decode(data)[10, 10], np.array([255, 0, 0]), 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [300, 1500])
def test_tiers_are_baseline_jpegs_without_metadata(kind: str, side: int) -> None:
    source = picture(5, width=side * 4 // 3, height=side)
    more = {"quality": 95, "comment": b"a secret"} if kind == "JPEG" else {}
    data = encoded(source, kind, icc_profile=b"x" * 500, **more)
    original = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    stored = store(data, PictureOptions(), parse_tiers("64:90,160:90,full:95"))
    assert (stored.width, stored.height) == source.size
    for (name, file), size, sampling in zip(
        stored.files.items(),
        [(85, 64), (213, 160), source.size],
        [0, 2, 2],  # full chroma up to 128 px: 4:4:4, above it 4:2:0
        strict=True,
    ):
        assert b"\xff\xc0" in file and b"\xff\xc2" not in file  # baseline, not progressive
        assert b"secret" not in file and b"ICC_PROFILE" not in file
        found = Image.open(io.BytesIO(file))
        assert found.size == size and found.mode == "RGB"
        assert JpegImagePlugin.get_sampling(found) == sampling
        wanted = np.asarray(Image.fromarray(original).resize(size, Image.Resampling.BICUBIC))
        assert psnr(np.asarray(found), wanted) > 38, name


def test_a_clean_baseline_jpeg_is_its_own_full_tier_bit_for_bit() -> None:
    source = picture(5, width=400, height=300)
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010E] = "a secret"
    data = encoded(source, "JPEG", quality=83, comment=b"another", exif=exif) + b"trailing"
    [file] = store(data, ANY, parse_tiers("full:95")).files.values()
    assert len(file) < len(data) and b"secret" not in file and b"another" not in file
    assert b"Exif" not in file and not file.endswith(b"trailing")
    one, other = (np.asarray(Image.open(io.BytesIO(f))) for f in (file, data))
    assert (one == other).all()
    assert without_metadata(file) == file


@pytest.mark.parametrize("fault", ["progressive", "grey", "cmyk", "turned", "profile", "png"])
def test_what_is_no_clean_baseline_jpeg_is_encoded_anew(fault: str) -> None:
    source, exif = picture(5, width=120, height=90), Image.Exif()
    exif[0x0112] = 6 if fault == "turned" else 1
    mode = {"grey": "L", "cmyk": "CMYK"}.get(fault, "RGB")
    profile = {"icc_profile": display_p3()} if fault == "profile" else {}
    data = encoded(
        source.convert(mode),
        "PNG" if fault == "png" else "JPEG",
        exif=exif,
        **({} if fault == "png" else {"quality": 95, "progressive": fault == "progressive"}),
        **profile,
    )
    [file] = store(data, ANY, parse_tiers("full:95")).files.values()
    assert b"\xff\xc0" in file and b"\xff\xc2" not in file and b"Exif" not in file
    found = np.asarray(Image.open(io.BytesIO(file)))
    wanted = np.asarray(upright(open_checked(data, ANY), data))
    assert found.shape == wanted.shape and psnr(found, wanted) > 34


@pytest.mark.parametrize("size", [(547, 365), (600, 401), (333, 500), (640, 427)])
def test_a_scaled_decode_shifts_nothing(size: tuple[int, int]) -> None:
    """Sizes that no eighth divides: the decoder rounds up, and the picture does not."""
    photograph = Image.fromarray(load_sample_images().images[0]).resize(size)
    data = encoded(photograph, "JPEG", quality=95)
    [file] = store(data, ANY, parse_tiers("120:100")).files.values()
    found = Image.open(io.BytesIO(file))
    whole = Image.open(io.BytesIO(data)).resize(found.size, Image.Resampling.BICUBIC)
    assert psnr(np.asarray(found), np.asarray(whole)) > 38


@pytest.mark.parametrize("size", [(61, 40), (160, 107), (200, 133), (546, 364)])
def test_pixels_are_shrunk_as_pillow_does(size: tuple[int, int]) -> None:
    whole = np.array(Image.fromarray(load_sample_images().images[0]).resize((547, 365)))
    wanted = np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BICUBIC))
    found = shrink(whole, size, (547, 365))
    assert found.shape == wanted.shape
    worst = np.abs(found.astype(int) - wanted).max()
    assert worst <= 2, f"largest difference {worst} of 255"


def test_a_cut_jpeg_is_refused_by_name_whatever_is_wanted_of_it() -> None:
    data = encoded(picture(5, width=400, height=300), "JPEG", quality=90)
    for tiers in ("full:95", "32:90", "32:90,full:95"):
        with pytest.raises(RejectedError, match="image_truncated"):
            store(data[: len(data) * 2 // 3], ANY, parse_tiers(tiers))


def test_no_picture_is_enlarged() -> None:
    stored = store(encoded(picture(5, width=40, height=30)), ANY, parse_tiers("160:90"))
    assert Image.open(io.BytesIO(stored.files["160"])).size == (40, 30)


def test_a_palette_or_grey_picture_becomes_rgb() -> None:
    for mode in ("L", "P", "1", "LA", "RGBA"):
        image = picture(6).convert(mode)
        wanted = np.asarray(image.convert("RGB"))
        assert_close(decode(encoded(image)), wanted, 0)


@pytest.mark.parametrize("text", ["", "160", "160:0", "160:101", "-1:90", "full:x", "8:90,8:80"])
def test_tiers_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tiers="):
        PictureOptions(tiers=text)
