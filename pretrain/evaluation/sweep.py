"""Accuracy against tokens: one model at several picture sizes, kept tokens and text lengths."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.evaluation.features import KeptTokens
from pretrain.evaluation.options import Axis, SweepOptions
from pretrain.evaluation.task import HEADLINES, Figure
from pretrain.tokens.image_reduction import kept_count
from pretrain.tokens.options import TokenOptions

_LABELS: dict[Axis, str] = {
    "image_px": "image tokens, by picture size",
    "keep_tokens": "image tokens kept, at random",
    "text_tokens": "text tokens",
}


def sweep_points(options: SweepOptions, own: TokenOptions) -> list[tuple[Axis, TokenOptions]]:
    """(axis, lengths) of every evaluation, each axis ascending."""
    points: list[tuple[Axis, TokenOptions]] = []
    points += [
        ("image_px", replace(own, image_px=px)) for px in sorted(set(options.image_px or []))
    ]
    points += [
        ("keep_tokens", replace(own, image_reduction="random", image_keep_tokens=kept))
        for kept in sorted(set(options.keep_tokens or []))
    ]
    lengths = sorted(set(options.text_tokens or []))
    return points + [("text_tokens", replace(own, text_tokens=length)) for length in lengths]


def kept_tokens(tokens: TokenOptions) -> KeptTokens | None:
    """What an evaluation at these lengths keeps; None where it is everything."""
    if tokens.image_reduction == "none":
        return None
    return KeptTokens(reduction=tokens.image_reduction, count=tokens.image_keep_tokens)


def point_record(
    axis: Axis | None, tokens: TokenOptions, patch_px: int, figures: Iterable[Figure]
) -> dict[str, Any]:
    """One evaluation as the JSON file holds it; token counts without CLS."""
    grid = tokens.image_px // patch_px
    return {
        **({} if axis is None else {"axis": axis}),
        "image_px": tokens.image_px,
        "image_tokens": kept_count(tokens.image_reduction, grid, tokens.image_keep_tokens),
        "text_tokens": tokens.text_tokens,
        "figures": [figure.record() for figure in figures],
    }


def draw_sweep(
    points: Sequence[tuple[Axis, TokenOptions, Sequence[Figure]]],
    patch_px: int,
    title: str,
    file: Path,
) -> None:
    """One panel an axis: every headline over tokens, its interval as a band, chance dotted."""
    from matplotlib.figure import Figure as Drawing

    axes_named = [axis for axis in _LABELS if any(own == axis for own, _, _ in points)]
    drawing = Drawing(figsize=(4.6 * len(axes_named) + 2.4, 4.4), layout="constrained")
    panels = drawing.subplots(1, len(axes_named), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes_named, strict=True):
        lines: dict[str, list[tuple[int, Figure]]] = {}
        for own, at, figures in points:
            if own == axis:
                grid = at.image_px // patch_px
                image = kept_count(at.image_reduction, grid, at.image_keep_tokens)
                tokens = at.text_tokens if axis == "text_tokens" else image
                for one in figures:
                    if one.name in HEADLINES:
                        lines.setdefault(one.label, []).append((tokens, one))
        for place, (name, line) in enumerate(lines.items()):
            x, look = [tokens for tokens, _ in line], {"color": f"C{place % 10}"}
            panel.plot(x, [100 * one.value for _, one in line], "o-", label=name, **look)
            chances = [(at, 100 * one.chance) for at, one in line if one.chance is not None]
            panel.plot(*zip(*chances, strict=True), ":", linewidth=1, **look)
            bands = [one.interval for _, one in line if one.interval is not None]
            if len(bands) == len(line):
                low, high = ([100 * band[end] for band in bands] for end in (0, 1))
                panel.fill_between(x, low, high, alpha=0.12, linewidth=0, **look)
        ticks = sorted({tokens for line in lines.values() for tokens, _ in line})
        panel.set(xlabel=_LABELS[axis], ylim=(0, None))
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("right, in percent (dotted: chance)")
    drawing.suptitle(title)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(file, dpi=150)
