"""The embedding map: pictures and captions of a sample in two dimensions, coloured by class."""

from collections import Counter
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes

from pretrain.report import figures
from pretrain.report.chart import WIDE, Chart, Key, make_axes
from pretrain.report.run_folder import Record, Run
from pretrain.report.theme import COLOURS, STYLE, inline

GROUPS = 10  # classes that get a colour of their own; the style sheet has g1 to g10
_HEIGHT = 360
_OTHER = "soft"
# Kind of point: (what a tip calls it, matplotlib's mark, its size).
_KINDS = {"texts": ("caption", "^", 4.6), "pictures": ("picture", "o", 4.0)}


@rc_context(STYLE)  # type: ignore[arg-type]
def embedding_map(run: Run) -> Chart | None:
    """Pictures as dots and captions as triangles; None where the run folder holds no map."""
    record = _record(run)
    points = {kind: _points(record.get(kind)) for kind in _KINDS}
    every = [point for own in points.values() for point in own]
    if not every:
        return None
    colours = _colours([group for _, _, group in every])
    figure, axes = make_axes(WIDE, _HEIGHT, (8, 8, 6, 24))
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    shares = record.get("explained")
    x, y = shares if isinstance(shares, list) and len(shares) == 2 else (None, None)
    axes.set_xlabel(
        f"two main directions: {figures.percent(x)} (across), {figures.percent(y)} of the variance"
    )
    tips: dict[str, str] = {}
    for kind, own in points.items():
        for at, caption, group in own:
            _draw(axes, kind, at, colours.get(group, _OTHER), tips, caption, group)
    title = f"Embeddings, {figures.readable((run.gallery or {}).get('set', 'held-out set'))}"
    keys = [Key(name=str(name), value="", swatch=f"{of} block") for name, of in colours.items()]
    if colours and any(group not in colours for _, _, group in every):
        keys.append(Key(name="other", value="", swatch=f"{_OTHER} block"))
    keys += [Key(name=f"{kind}", value="", swatch=f"ink mark {kind}") for kind in reversed(_KINDS)]
    drawing = inline(figure, title, tips)
    return Chart(title=title, width=WIDE, height=_HEIGHT, drawing=drawing, keys=keys)


def map_note(run: Run) -> str:
    """What the colours are, and how far pictures lie from captions."""
    record = _record(run)
    column = record.get("column")
    of = "" if column is None else f" Colours are the {figures.readable(column)} of the picture."
    return f"{of} The distance between the two means is {figures.decimal(record.get('gap'))}."


def _record(run: Run) -> Record:
    found = (run.gallery or {}).get("map")
    return found if isinstance(found, dict) else {}


def _points(found: Any) -> list[tuple[tuple[float, float], str, str | None]]:
    """(place, caption, group) of the points whose places are finite numbers."""
    points = []
    for point in found if isinstance(found, list) else []:
        at = point.get("at") if isinstance(point, dict) else None
        ends = [figures.number(end) for end in at] if isinstance(at, list) else []
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            group = point.get("group")
            caption = str(point.get("caption", figures.MISSING))
            points.append(((ends[0], ends[1]), caption, None if group is None else str(group)))
    return points


def _colours(groups: list[str | None]) -> dict[str | None, str]:
    """Colours of the commonest groups, by name, so that a rebuilt page looks the same."""
    counts = Counter(group for group in groups if group is not None)
    common = sorted(counts, key=lambda group: (-counts[group], group))[:GROUPS]
    return {group: f"g{place}" for place, group in enumerate(sorted(common), start=1)}


def _draw(
    axes: Axes,
    kind: str,
    at: tuple[float, float],
    colour: str,
    tips: dict[str, str],
    caption: str,
    group: str | None,
) -> None:
    called, mark, size = _KINDS[kind]
    gid = f"point-{len(tips)}"
    tips[gid] = f"{called}: {caption}" + ("" if group is None else f" ({group})")
    look: dict[str, Any] = {"markeredgecolor": COLOURS["card"], "markeredgewidth": 0.5}
    axes.plot(*at, mark, gid=gid, color=COLOURS[colour], markersize=size, **look)
