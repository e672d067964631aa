"""JPEG files taken apart: what is left of one without its metadata, its pixels untouched."""

from pretrain.dataset.jpeg import (
    FRAME_HEADERS,
    MARKER_IN_SCAN,
    START_OF_JPEG,
    START_OF_SCAN,
    jpeg_segments,
)

_END = b"\xff\xd9"
# Markers (ITU T.81, table B.1) of what pixels are made of: Huffman and quantisation tables,
# restart interval, the frame of a baseline JPEG, and Adobe's segment, which tells its colours.
BASELINE, ADOBE, JFIF = 0xC0, 0xEE, 0xE0
_KEPT = frozenset({0xC4, 0xDB, 0xDD, BASELINE, ADOBE})
# JFIF 1.01, square pixels, no thumbnail.
_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def without_metadata(file: bytes) -> bytes | None:
    """The same baseline JPEG without EXIF, profiles, comments, thumbnails and what follows its end.

    None where it is no JPEG of one baseline scan of three 8-bit components.
    """
    if not file.startswith(START_OF_JPEG):
        return None
    kept = [START_OF_JPEG]
    for marker, place, stop in jpeg_segments(file):
        segment = file[place:stop]
        if marker in FRAME_HEADERS and not _is_plain_frame(marker, segment):
            return None
        if marker == START_OF_SCAN:
            # Its length, then how many components: all three in one scan.
            scan = _scan(file, stop) if segment[4:5] == b"\x03" else None
            return None if scan is None else b"".join([*kept, segment, scan, _END])
        if marker == JFIF and segment[4:9] == b"JFIF\0":
            kept.append(_PLAIN_JFIF)
        elif marker in _KEPT:
            kept.append(segment)
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # neither application data nor comment
            return None
    return None


def _is_plain_frame(marker: int, segment: bytes) -> bool:
    """Whether a frame header is of a baseline JPEG of three components of 8 bits."""
    return marker == BASELINE and segment[4:5] == b"\x08" and segment[9:10] == b"\x03"


def _scan(file: bytes, start: int) -> bytes | None:
    """The coded pixels from `start` on; None where something else than the end follows them."""
    end = MARKER_IN_SCAN.search(file, start)
    if end is None or end.group() != _END:
        return None
    return file[start : end.start()]
