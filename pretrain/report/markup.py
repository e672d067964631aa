"""HTML text that cannot be unescaped by accident: plain strings are always escaped."""

import html
from collections.abc import Iterable, Mapping

_VOID = frozenset({"img", "line", "rect", "circle", "path", "polyline", "br"})


class Html(str):
    """Text that is HTML already; everything else is escaped when it is put on the page."""


def escaped(content: object) -> Html:
    """The content as HTML: itself if it is `Html`, else its text with `& < > " '` escaped."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(str(content), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """All parts one after another, each escaped unless it is `Html`."""
    return Html(separator.join(escaped(part) for part in parts))


def element(name: str, attributes: Mapping[str, object] | None = None, *children: object) -> Html:
    """One element; attribute values and plain-text children are escaped."""
    opened = "".join(f' {key}="{escaped(value)}"' for key, value in (attributes or {}).items())
    if name in _VOID and not children:
        return Html(f"<{name}{opened}/>")
    return Html(f"<{name}{opened}>{join(children)}</{name}>")


def paragraph(*children: object, kind: str | None = None) -> Html:
    """One paragraph, of a CSS class where `kind` is given."""
    return element("p", {"class": kind} if kind else None, *children)


def table(
    head: Iterable[Iterable[object]],
    rows: Iterable[Iterable[object]],
    row_kinds: Iterable[str] = (),
) -> Html:
    """A table whose first column is text and whose others are numbers, aligned right.

    head: header rows; a cell given as a pair (text, columns) spans that many columns.
    row_kinds: one CSS class per body row, "" for none; rows past its end have none.
    """
    head_rows = []
    for cells in head:
        spans = [cell if isinstance(cell, tuple) else (cell, 1) for cell in cells]
        head_rows.append(
            element(
                "tr",
                None,
                *(
                    element("th", {"colspan": columns, "class": "span"} if columns > 1 else {}, t)
                    for t, columns in spans
                ),
            )
        )
    kinds = list(row_kinds)
    body_rows = []
    for i, cells in enumerate(rows):
        kind = kinds[i] if i < len(kinds) else ""
        attributes = {"class": kind} if kind else {}
        body_rows.append(element("tr", attributes, *(element("td", None, c) for c in cells)))
    return element(
        "div",
        {"class": "scroll"},
        element(
            "table",
            None,
            element("thead", None, *head_rows),
            element("tbody", None, *body_rows),
        ),
    )
