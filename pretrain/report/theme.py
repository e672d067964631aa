"""Matplotlib figures as SVG inside the page: colours, fonts and width are the page's own."""

import io
import re
import warnings
from collections.abc import Mapping
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib draws in colours that each stand for one variable of the page's style sheet, so that
# a chart follows the reader's light or dark colours.
_VARIABLES = [
    *("ink", "soft", "grid", "mark", "card", "c1", "c2", "c3", "c4"),
    *(f"g{place}" for place in range(1, 11)),
]
COLOURS = {name: f"#fe{place:02x}fe" for place, name in enumerate(_VARIABLES)}

STYLE = {
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["soft"],
    "axes.spines.bottom": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 11,
    "grid.color": COLOURS["grid"],
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # names come from the run folder and may hold a $
    "xtick.bottom": False,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "ytick.left": False,
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def plain(text: object, limit: int = 60) -> str:
    """A text as a chart can hold it: one line of printable characters, of a length that fits."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def make_axes(width: int, height: int, margins: tuple[int, int, int, int]) -> tuple[Figure, Axes]:
    """A figure of so many px with one plot in it; margins: left, right, top, bottom, in px."""
    left, right, top, bottom = margins
    figure = Figure(figsize=(width / 72, height / 72))
    inner = (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes((left / width, bottom / height, *inner))


def inline(figure: Figure, title: str, tips: Mapping[str, str]) -> Markup:
    """The content of the figure's `<svg>`: the same bytes for the same figure and title.

    title: must differ from chart to chart, for ids are made from it.
    tips: what an artist says on hovering, by the artist's gid.
    """
    text = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        # The reader's browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(text, format="svg", metadata=metadata)
    root = ElementTree.fromstring(text.getvalue())
    root.remove(root[0])  # a style sheet that would hold for the whole page
    for element in list(root.iter()):
        element.tag = element.tag.removeprefix(_SVG)
        if f"{_XLINK}href" in element.attrib:
            element.set("href", element.attrib.pop(f"{_XLINK}href"))
        if "style" in element.attrib:
            element.set("style", _theme(element.attrib["style"]))
        if element.tag == "g":
            tip = tips.get(element.attrib.pop("id", ""))
            if tip:
                note = ElementTree.Element("title")
                note.text = plain(tip, limit=200)
                element.insert(0, note)
    return Markup("".join(ElementTree.tostring(child, encoding="unicode") for child in root))


def _theme(style: str) -> str:
    """A style with the page's colours, and without font and size, which the page sets."""
    for name, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{name})")
    return re.sub(r"font-(size|family): [^;]*(; |$)", "", style)
