"""A table as plain values, for the page's template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell with a small second line."""

    text: str
    under: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows whose first cell is text and whose others are numbers, aligned right."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str | Cell]]]
    """Each with its kind, a CSS class: `final`, `chance` or none ("")."""
    spans: Sequence[tuple[str, int]] = ()
    """Headings over several columns each: text and columns."""
    title: str = ""
    detail: str = ""
