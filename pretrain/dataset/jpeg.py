"""JPEG files by their markers, and whether their coded pixels are whole. (ITU T.81, table B.1)"""

import re
import struct
from collections.abc import Iterator

import simplejpeg

START_OF_JPEG = b"\xff\xd8"
START_OF_SCAN, END_OF_JPEG = 0xDA, 0xD9
# In a scan 0xFF stands before a stuffed zero or a restart marker only.
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# How libjpeg-turbo's words for damaged pixels begin; of others (a kind of JPEG that its plain
# interface does not know) Pillow judges.
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Invalid JPEG", "Unsupported marker")
# Some cameras pad the coded pixels; what is left over of damaged ones is longer, or not all alike.
_STRAY = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_PADDING_BYTES = 64
# A progressive JPEG has some ten; thousands in a few kilobytes would cost minutes of time.
SCANS_CAP = 100


def jpeg_segments(file: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, place, end) of the segments of a JPEG's head, its first scan's header the last.

    Fewer where the head is damaged. Content begins four bytes behind a place.
    """
    place, marker = len(START_OF_JPEG), 0
    while marker != START_OF_SCAN and place + 4 <= len(file) and file[place] == 0xFF:
        marker = file[place + 1]
        if marker == 0xFF:  # fill
            place += 1
            continue
        end = place + 2 + int.from_bytes(file[place + 2 : place + 4], "big")
        yield marker, place, end
        place = end


def read_frame(file: bytes) -> tuple[int, int, int]:
    """(height, width, colours) by a JPEG's frame header. ValueError where it has none."""
    for marker, place, end in jpeg_segments(file):
        if marker in FRAME_HEADERS and place + 10 <= end <= len(file):
            height, width, colours = struct.unpack(">HHB", file[place + 5 : place + 10])
            return height, width, colours
    raise ValueError("a JPEG without a frame header")


def walk_scans(file: bytes) -> tuple[int, int]:
    """(scans of a JPEG, where its end marker is); it looks no further than SCANS_CAP scans, nor at
    what lies inside of other segments or behind the end: thumbnails, films."""
    place, scans = len(START_OF_JPEG), 0
    while place + 4 <= len(file) and file[place] == 0xFF and scans <= SCANS_CAP:
        marker = file[place + 1]
        if marker == 0xFF:  # fill
            place += 1
            continue
        if marker == END_OF_JPEG:
            return scans, place
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
        if marker == START_OF_SCAN:
            scans += 1
            found = MARKER_IN_SCAN.search(file, place)
            place = len(file) if found is None else found.start()
    if file[place : place + 2] == bytes((0xFF, END_OF_JPEG)):
        return scans, place
    return scans, len(file)


def check_coded(file: bytes) -> None:
    """ValueError where the coded pixels of a JPEG are damaged: Pillow would make grey or garbled
    rows of them without a word. Other formats' decoders check by themselves."""
    if not file.startswith(START_OF_JPEG):
        return
    try:
        wanted = {1: "GRAY", 4: "CMYK"}.get(read_frame(file)[2], "RGB")
        # An eighth of each side: all is read, little is computed.
        simplejpeg.decode_jpeg(file, colorspace=wanted, min_width=1, min_height=1, strict=True)
    except ValueError as error:
        refuse_damage(file, error)


def refuse_damage(file: bytes, error: ValueError) -> None:
    """Raise the fast decoder's error if it means damage, not padding behind the coded pixels nor a
    kind of JPEG that it does not know."""
    words = str(error)
    stray = _STRAY.search(words)
    if stray is not None and int(stray[1]) <= _PADDING_BYTES:
        _, end = walk_scans(file)
        if len({*file[end - int(stray[1]) : end]}) <= 1:
            return
    if words.startswith(_DAMAGE):
        raise error
