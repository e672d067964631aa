"""Every bad sample is left out and counted under its own name; the run goes on."""

import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_prep_corpus import caption, encoded, options, picture, write_corpus
from PIL import Image

import data_prep.build.samples
from data_prep.build.pipeline import build_dataset
from data_prep.rejection import REASONS

GOOD = 5


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def jpeg_claiming(width: int, height: int) -> bytes:
    """A true JPEG whose frame header claims another size."""
    data = bytearray(encoded(picture(1), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


JPEG = encoded(picture(1, width=300, height=200), "JPEG")
PNG = encoded(picture(1, width=300, height=200))
WEBP = encoded(picture(1, width=300, height=200), "WEBP")
BAD_PICTURES = {
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "image_truncated"),
    "JPEG without its last 20 bytes": (JPEG[:-20], "image_truncated"),
    "truncated PNG": (PNG[: len(PNG) // 2], "image_truncated"),
    "truncated WebP": (WEBP[: len(WEBP) // 2], "image_truncated"),
    "JPEG cut in its header": (JPEG[:150], "image_unreadable"),
    "text": (b"<html>404 not found</html>", "image_unreadable"),
    "no bytes": (b"", "image_unreadable"),
    "null": (None, "image_missing"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "image_unreadable"),
    "60000x60000 PNG header": (png_header(60000, 60000), "image_too_large"),
    "60000x60000 JPEG header": (jpeg_claiming(60000, 60000), "image_too_large"),
    "9000x9000, below Pillow's own limit": (png_header(9000, 9000), "image_too_large"),
    "one side beyond what a JPEG can have": (
        encoded(Image.new("RGB", (65_501, 40))),
        "image_too_large",
    ),
    "20 px high": (encoded(picture(1, width=90, height=20)), "image_too_small"),
    "10:1": (encoded(picture(1, width=400, height=40)), "image_aspect"),
    "1:10": (encoded(picture(1, width=40, height=400)), "image_aspect"),
}


def build(tmp_path: Path, images: list, captions: list, column: pa.DataType | None = None):
    """Build from `GOOD` good rows around the given ones: (manifest, reasons that were counted)."""
    good = [encoded(picture(100 + i)) for i in range(GOOD)]
    texts = [caption(100 + i) for i in range(GOOD)]
    if column is not None:
        texts = [text.encode() for text in texts]
    source = write_corpus(
        tmp_path / "corpus.parquet",
        {
            "image": pa.array([*good[:2], *images, *good[2:]], pa.binary()),
            "caption": pa.array([*texts[:2], *captions, *texts[2:]], column),
        },
    )
    manifest, _ = build_dataset(
        options(source, tmp_path / "out", min_px=32, max_aspect=4, max_chars=200)
    )
    assert manifest.samples == GOOD
    assert set(manifest.rejected) == set(REASONS)
    return {reason: count for reason, count in manifest.rejected.items() if count}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture(tmp_path: Path, name: str) -> None:
    data, reason = BAD_PICTURES[name]
    assert build(tmp_path, [data], ["a fine caption"]) == {reason: 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "caption_empty"),
        (None, "caption_empty"),
        (" \n\t ", "caption_empty"),
        ("​", "caption_empty"),  # a zero-width space: text, but no token
        ("word " * 50, "caption_too_long"),
    ],
)
def test_bad_caption(tmp_path: Path, text: str | None, reason: str) -> None:
    assert build(tmp_path, [JPEG], [text]) == {reason: 1}


def test_binary_caption_that_is_not_utf8(tmp_path: Path) -> None:
    assert build(tmp_path, [JPEG], [b"caf\xe9"], pa.binary()) == {"caption_not_utf8": 1}


def test_string_column_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """Parquet's string type does not promise UTF-8: writers exist that do not check."""
    bad = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    source = tmp_path / "corpus.parquet"
    texts = pa.concat_arrays([pa.array(["a good caption"]), bad, pa.array(["another one"])])
    images = [encoded(picture(i)) for i in range(3)]
    write_corpus(source, {"image": images, "caption": texts})
    manifest, _ = build_dataset(options(source, tmp_path / "out"))
    assert (manifest.samples, manifest.rejected["caption_not_utf8"]) == (2, 1)


def test_duplicates_are_same_picture_and_same_caption(tmp_path: Path) -> None:
    images = [encoded(picture(100)), encoded(picture(100)), encoded(picture(7))]
    captions = [caption(100), f"  {caption(100)}\n", caption(100)]
    good = {"image": [*images, encoded(picture(100))], "caption": [*captions, "another text"]}
    source = write_corpus(tmp_path / "corpus.parquet", good)
    manifest, _ = build_dataset(options(source, tmp_path / "out"))
    assert (manifest.samples, manifest.rejected["duplicate_key"]) == (3, 1)


SIZES = ((65_500, 16), (16, 65_500), (65_501, 16), (16, 66_000))


def test_the_longest_side_that_a_jpeg_can_have_is_kept(tmp_path: Path) -> None:
    """libjpeg's own limit, so that what passes the check can be written."""
    images = [encoded(Image.new("RGB", size)) for size in SIZES]
    table = {"image": images, "caption": ["a long line", "a tall line", "too long", "too tall"]}
    source = write_corpus(tmp_path / "corpus.parquet", table)
    manifest, _ = build_dataset(options(source, tmp_path / "out", tiers="full:95,8:90"))
    assert (manifest.samples, manifest.rejected["image_too_large"]) == (2, 2)


def test_a_row_that_fails_beyond_all_reasons_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a codec's own limit: the build stops, and says at which row."""
    images = [encoded(picture(i)) for i in range(4)]
    source = write_corpus(
        tmp_path / "corpus.parquet", {"image": images, "caption": ["a", "b", "c", "d"]}
    )
    encode, calls = data_prep.build.samples.store, []

    def fail_at_the_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("broken data stream when writing image file")
        return encode(*arguments)

    monkeypatch.setattr("data_prep.build.samples.store", fail_at_the_third)
    with pytest.raises(ValueError, match=r"corpus\.parquet row 2.*broken data stream.*--where"):
        build_dataset(options(source, tmp_path / "out"))


def test_damage_anywhere_in_a_picture_never_ends_a_run(tmp_path: Path) -> None:
    """Bit flips and cuts in six kinds of file: each row is a sample or a counted rejection."""
    images = []
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        data = encoded(picture(3, width=64, height=48), kind)
        for place in range(0, len(data), max(1, len(data) // 40)):
            flipped = bytearray(data)
            flipped[place] ^= 0xFF
            images += [bytes(flipped), data[:place]]
    captions = [f"damaged picture {i}" for i in range(len(images))]
    source = write_corpus(tmp_path / "corpus.parquet", {"image": images, "caption": captions})
    manifest, _ = build_dataset(options(source, tmp_path / "out"))
    assert manifest.samples + sum(manifest.rejected.values()) == len(images)
    assert manifest.rejected["image_truncated"] and manifest.rejected["image_unreadable"]
    assert isinstance(Image.MAX_IMAGE_PIXELS, int)  # Pillow's own guard was left as it is


@pytest.mark.parametrize("page", ["sources.md", "shard-format.md"])
def test_every_reason_is_explained(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []
