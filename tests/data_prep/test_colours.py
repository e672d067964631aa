"""A picture is stored in the colours that its ICC profile gives, as sRGB."""

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import encoded, picture
from PIL import Image, ImageCms

from data_prep.pictures.limits import PictureOptions, open_checked, upright
from pretrain.dataset.pictures import srgb_transform

DEMO_CORPUS = Path(__file__).parents[2] / "data_prep" / "demo_corpus" / "emoji.parquet"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# CIE xy of red, green, blue; both have the white D65. IEC 61966-2-1 and SMPTE EG 432-1.
SRGB_PRIMARIES = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
P3_PRIMARIES = [(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)]
D65 = (0.3127, 0.3290)
# The same colours under D50, as Apple's Display P3.icc has them.
P3_COLORANTS = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def tags(profile: bytes) -> dict[bytes, int]:
    (count,) = struct.unpack(">I", profile[128:132])
    entries = [
        struct.unpack(">4sII", profile[i : i + 12]) for i in range(132, 132 + 12 * count, 12)
    ]
    return {name: offset for name, offset, _ in entries}


def display_p3() -> bytes:
    """sRGB's profile with the colorants of Display P3, whose curve is sRGB's."""
    profile = bytearray(SRGB)
    for name, values in P3_COLORANTS.items():
        place = tags(SRGB)[name] + 8
        profile[place : place + 12] = struct.pack(">3i", *(round(v * 65536) for v in values))
    return bytes(profile)


def to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
    """(3, 3): linear RGB to CIE XYZ, by the primaries' and the white's chromaticities."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = D65
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


def linear(values: np.ndarray) -> np.ndarray:
    v = np.asarray(values, float) / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def coded(light: np.ndarray) -> np.ndarray:
    v = np.clip(light, 0, 1)
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def p3_as_srgb(values: np.ndarray) -> np.ndarray:
    matrix = np.linalg.solve(to_xyz(SRGB_PRIMARIES), to_xyz(P3_PRIMARIES))
    return coded(linear(values) @ matrix.T)


def ink_profile(inks: np.ndarray) -> bytes:
    """A CMYK profile of two grid points a side; inks (16, 3): Lab of each corner, K fastest."""
    levels = np.linspace(0, 255, 256).round().astype(np.uint8).tobytes()
    lab = inks * [255 / 100, 1, 1] + [0, 128, 128]  # ICC.1:2001, 6.3.4.2: PCS Lab of 8 bits
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table += levels * 4 + lab.round().astype(np.uint8).tobytes() + levels * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    begin = 132 + 24
    head = bytearray(SRGB[:128])
    head[0:4] = struct.pack(">I", begin + len(table) + len(white))
    head[8:12], head[12:16] = b"\x02\x40\0\0", b"scnr"
    head[16:20], head[20:24] = b"CMYK", b"Lab "
    entries = struct.pack(">I4sII", 2, b"A2B0", begin, len(table))
    entries += struct.pack(">4sII", b"wtpt", begin + len(table), len(white))
    return bytes(head) + entries + table + white


def lab_as_srgb(lab: tuple[float, float, float]) -> np.ndarray:
    """CIE Lab under D50 to sRGB, by Bradford's adaptation to D65."""
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    d50 = np.array([0.9642, 1, 0.8249])
    xyz = d50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    cones = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    x, y = D65
    d65 = np.array([x / y, 1, (1 - x - y) / y])
    adapted = np.linalg.solve(cones, (cones @ xyz) * (cones @ d65) / (cones @ d50))
    return coded(np.linalg.solve(to_xyz(SRGB_PRIMARIES), adapted))


def decode(data: bytes) -> np.ndarray:
    return np.asarray(upright(open_checked(data, PictureOptions()), data)).astype(int)


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert found.shape == wanted.shape
    difference = np.abs(found - wanted).max()
    assert difference <= tolerance, f"largest difference {difference}"


def drawing() -> Image.Image:
    """A drawing that fades out to the right."""
    table = next(pq.ParquetFile(DEMO_CORPUS).iter_batches(batch_size=1))
    layer = Image.open(io.BytesIO(table.column("image")[0].as_py())).convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").rotate(90).resize(layer.size))
    return layer


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_display_p3_becomes_srgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(picture(1), kind, icc_profile=display_p3(), **options)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    wanted = p3_as_srgb(stored)
    assert np.abs(wanted - stored).max() > 20  # or the profile would show nothing
    assert_close(decode(data), wanted, 1.5)


def test_a_transparent_drawing_is_converted_before_it_is_laid_on_white() -> None:
    layer = drawing()
    colours, alpha = np.asarray(layer)[..., :3], np.asarray(layer)[..., 3:] / 255
    assert alpha.min() < 0.1 and alpha.max() > 0.9
    wanted = p3_as_srgb(colours) * alpha + 255 * (1 - alpha)
    assert_close(decode(encoded(layer, icc_profile=display_p3())), wanted, 2)


def test_grey_is_converted_by_its_curve() -> None:
    """A grey profile of gamma 1.8 in 8 and 16 bits."""
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(1.8 * 256))
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    profile = bytearray(SRGB[:128]) + struct.pack(">I4sII", 2, b"kTRC", 156, len(curve))
    profile += struct.pack(">4sII", b"wtpt", 156 + len(curve), len(white)) + curve + white
    profile[0:4], profile[16:20] = struct.pack(">I", len(profile)), b"GRAY"
    profile[8:12] = b"\x02\x40\0\0"
    ramp = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    wanted = np.repeat(coded((ramp / 255) ** 1.8)[..., None], 3, axis=2)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 257)):
        # The last levels of black are steep in one curve and not in the other.
        assert_close(decode(encoded(image, icc_profile=bytes(profile)))[:, 8:], wanted[:, 8:], 2)


def test_cmyk_is_converted_by_its_profile() -> None:
    inks = np.zeros((2, 2, 2, 2, 3))  # cyan, magenta, yellow, black: all with black are black
    inks[0, 0, 0, 0] = (100, 0, 0)
    seen = {(1, 0, 0): (55, -20, -40), (0, 1, 0): (48, 60, -2), (0, 0, 1): (88, -5, 70)}
    for place, lab in seen.items():
        inks[(*place, 0)] = lab
    profile = ink_profile(inks.reshape(16, 3))
    for place, lab in {(0, 0, 0): (100, 0, 0), **seen}.items():
        flat = Image.new("CMYK", (20, 20), (*(255 * ink for ink in place), 0))
        found = decode(encoded(flat, "TIFF", icc_profile=profile))[0, 0]
        assert_close(found, lab_as_srgb(lab), 2)


BAD_PROFILES = {
    "no profile": b"x" * 500,
    "a few bytes": b"abc",
    "cut short": display_p3()[:200],
    "of another mode": display_p3()[:16] + b"CMYK" + display_p3()[20:],
    "of an unknown space": display_p3()[:16] + b"7CLR" + display_p3()[20:],
    "without colorants": display_p3().replace(b"rXYZ", b"junk"),
    "zeros after the header": display_p3()[:128] + bytes(460),
}


@pytest.mark.parametrize("name", BAD_PROFILES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_profile_that_cannot_be_used_is_as_none(name: str, mode: str) -> None:
    image = picture(2).convert(mode)
    with_profile = decode(encoded(image, icc_profile=BAD_PROFILES[name]))
    assert_close(with_profile, decode(encoded(image)), 0)


def test_an_srgb_profile_changes_no_pixel_and_costs_no_conversion() -> None:
    assert srgb_transform(SRGB, "RGB") is None and srgb_transform(display_p3(), "RGB") is not None
    data = encoded(picture(3), icc_profile=SRGB)
    assert_close(decode(data), np.asarray(picture(3)).astype(int), 0)
