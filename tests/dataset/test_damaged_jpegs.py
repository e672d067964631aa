"""A JPEG whose pixels are damaged is no picture, whatever decoder reads it; a padded one is."""

import contextlib
import io
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from data_prep.pictures.limits import PictureLimits, measure_in_place, parse_tiers
from data_prep.pictures.tiers import store
from data_prep.rejection import RejectedError
from pretrain.dataset.jpeg import SCANS_CAP
from pretrain.dataset.pictures import TooLargeError, decode

END = b"\xff\xd9"
TURNED = Image.Exif()
TURNED[0x0112] = 6  # most phones' pictures: they take Pillow's decoder
KINDS: dict[str, dict] = {
    "plain": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 20},
    "full chroma": {"subsampling": 0},
    "turned": {"exif": TURNED},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}


def jpeg(kind: str) -> bytes:
    how = dict(KINDS[kind])
    noise = np.random.default_rng(0).normal(size=(60, 80, 3)).cumsum(0).cumsum(1)
    picture = Image.fromarray((noise * 6 % 256).astype(np.uint8)).resize((400, 300))
    content = io.BytesIO()
    picture.convert(how.pop("mode", "RGB")).save(content, "JPEG", quality=88, **how)
    return content.getvalue()


def damaged(whole: bytes) -> Iterator[tuple[str, bytes]]:
    size, middle = len(whole), len(whole) // 2
    yield "half zeros", whole[:middle] + bytes(size - middle)
    yield "half zeros and an end", whole[:middle] + bytes(size - middle - 2) + END
    yield "half missing", whole[:middle]
    yield "half missing, an end put back", whole[:middle] + END
    yield "a tenth cut out", whole[:middle] + whole[middle + size // 10 :]
    yield "no end", whole[:-2]
    for seed in range(4):
        draws, changed = random.Random(seed), bytearray(whole)
        at = draws.randrange(size // 2, 3 * size // 4)
        changed[at : at + 100] = draws.randbytes(100)
        yield f"100 bytes changed, {seed}", bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pixels_are_no_picture(kind):
    whole = jpeg(kind)
    wanted = decode(whole)
    kept = []
    for name, file in damaged(whole):
        for reads in (
            lambda data: store(data, PictureLimits(), parse_tiers("full:95")),
            lambda data: store(data, PictureLimits(), parse_tiers("32:90")),
            lambda data: measure_in_place(data, PictureLimits()),
        ):
            try:
                reads(file)
                kept.append(name)
            except RejectedError as error:
                assert error.reason in ("image_truncated", "image_unreadable"), name
        try:
            changed = np.abs(decode(file).astype(int) - wanted).max(axis=2)
            kept.append(f"{name}: {np.mean(changed > 8):.1%} of the pixels differ")
        except ValueError:
            pass
    # Other bytes may be a valid code too, of which no decoder can tell.
    assert not [name for name in kept if not name.startswith("100 bytes")], kept
    assert len(kept) <= 4, kept


@pytest.mark.parametrize("kind", KINDS)
def test_what_pads_or_follows_the_pixels_costs_no_picture(kind):
    whole = jpeg(kind)
    wanted = decode(whole)
    for file in (
        whole[:-2] + bytes(40) + END,
        whole[:-2] + b"\0" + END,
        whole + b"behind it" * 9,
        whole + jpeg("plain"),
    ):
        assert (decode(file) == wanted).all()
        store(file, PictureLimits(), parse_tiers("full:95,32:90"))
        measure_in_place(file, PictureLimits())


def test_what_lies_in_other_segments_or_behind_the_end_is_no_scan():
    """A phone's film behind its picture, a thumbnail's markers in EXIF."""
    whole = jpeg("turned")
    noise = random.Random(0).randbytes(12_000_000) + b"\xff\xda" * 300
    segment = b"\xff\xed" + (2 + 60_000).to_bytes(2, "big") + b"\xff\xda" * 30_000
    padded = whole[:-2] + bytes(9) + END
    for file in (whole + noise, whole[:2] + segment + whole[2:], padded + jpeg("plain")):
        assert (decode(file) == decode(whole)).all()
        store(file, PictureLimits(), parse_tiers("full:95"))


@pytest.mark.parametrize("factors", [0x14, 0x41])
def test_rare_subsamplings_are_no_traceback(factors):
    """simplejpeg's own table lacks 4:4:1."""
    file = bytearray(jpeg("full chroma"))
    file[file.index(b"\xff\xc0") + 11] = factors
    for reads in (
        lambda: decode(bytes(file)),
        lambda: measure_in_place(bytes(file), PictureLimits()),
        lambda: store(bytes(file), PictureLimits(), parse_tiers("full:95,32:90")),
    ):
        with contextlib.suppress(ValueError, RejectedError):
            reads()


def test_thousands_of_scans_are_refused_before_they_cost_time():
    whole = jpeg("progressive")
    head, scan = whole[: whole.rindex(b"\xff\xda")], whole[whole.rindex(b"\xff\xda") : -2]
    file = head + scan * 3000 + END
    begin = time.monotonic()
    with pytest.raises(TooLargeError, match=f"over {SCANS_CAP} scans"):
        decode(file)
    for reads in (
        lambda: store(file, PictureLimits(), parse_tiers("full:95")),
        lambda: measure_in_place(file, PictureLimits()),
    ):
        with pytest.raises(RejectedError, match="image_too_large"):
            reads()
    assert time.monotonic() - begin < 2
