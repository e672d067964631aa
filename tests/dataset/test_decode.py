"""One decoder for every picture: what training, evaluation and inference see is the same."""

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pretrain.dataset.pictures import PIXELS_CAP, decode, is_plain_jpeg, open_picture

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}/></rdf:RDF></x:xmpmeta>'
)


def half_black() -> Image.Image:
    """40 x 24, black on its left half."""
    pixels = np.full((24, 40, 3), 255, np.uint8)
    pixels[:, :20] = 0
    return Image.fromarray(pixels)


def saved(form: str, **how: object) -> bytes:
    content = io.BytesIO()
    half_black().save(content, form, **how)
    return content.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_turn_that_only_xmp_tells_is_made_in_every_format(form):
    xmp = XMP.format('tiff:Orientation="6"').encode()
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        file = saved(form, pnginfo=info)
    else:
        file = saved(form, xmp=xmp)
    pixels = decode(file)
    assert pixels.shape == (40, 24, 3)  # a quarter turn: black is on top now
    assert pixels[:18].mean() < 10 and pixels[22:].mean() > 245


def test_xmp_without_a_turn_keeps_the_fast_decoder():
    file = saved("JPEG", xmp=XMP.format('tiff:Make="x"').encode())
    assert is_plain_jpeg(file) and decode(file).shape == (24, 40, 3)


@pytest.mark.parametrize("compressed", [True, False])
def test_long_texts_of_a_png_are_no_damage(compressed):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * (3 << 20), zip=compressed)
    assert decode(saved("PNG", pnginfo=info)).shape == (24, 40, 3)


def test_a_text_that_unpacks_to_gigabytes_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * (65 << 20), zip=True)
    with pytest.raises(ValueError, match="no whole picture"):
        decode(saved("PNG", pnginfo=info))


def test_other_formats_start_no_program(tmp_path: Path, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for read in (decode, open_picture):
        with pytest.raises(ValueError, match="no whole picture of JPEG"):
            read(postscript)


def test_the_cap_is_judged_by_the_header():
    side = int(PIXELS_CAP**0.5) + 1
    file = bytearray(saved("BMP"))
    file[18:22] = file[22:26] = side.to_bytes(4, "little")
    with pytest.raises(ValueError, match=f"{side} x {side} pixels: over the cap of 64,000,000"):
        open_picture(bytes(file))
