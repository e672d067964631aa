"""Where the sentences of a caption begin."""

import re

import numpy as np
from numpy.typing import NDArray

# A sentence ends with its marks, closing quotes and brackets, and white space behind them; East
# Asian marks need no white space.
_END = re.compile(r"[.!?…]+[\"'”’)\]»]*(?=\s)|[。！？]+[」』”）]*")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:\w|(?:\w\.)+\w|mr|mrs|ms|dr|prof|st|jr|sr|no|nos|vs|vol|fig|ca|cf|approx|ft|mt)$",
    re.IGNORECASE,
)


def sentence_breaks(text: str) -> list[int]:
    """Index behind the end of each sentence but the last, in characters.

    A full stop behind a single letter or a well-known abbreviation ends none, nor does one before
    a small letter.
    """
    breaks: list[int] = []
    for end in _END.finditer(text):
        rest = text[end.end() :].lstrip()
        full_stop = end.group()[0] == "." and end.group()[:2] != ".."
        if not rest or (
            full_stop and (rest[0].islower() or _ABBREVIATION.search(text[: end.start()]))
        ):
            continue
        breaks.append(end.end())
    return breaks


def mark_sentences(
    classes: NDArray[np.uint8], starts: NDArray[np.intp], text: str, mark: int
) -> None:
    """Set the bits `mark` in the class of each sentence's first token, which starts at `starts`."""
    if not len(classes):
        return
    first = np.searchsorted(np.maximum.accumulate(starts), [0, *sentence_breaks(text)])
    classes[first[first < len(classes)]] |= mark
