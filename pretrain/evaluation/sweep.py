"""Accuracy against tokens: one model at several picture sizes, kept tokens and text lengths."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pretrain.base.checks import check_positive
from pretrain.evaluation.features import KeptTokens
from pretrain.evaluation.retrieval import KS
from pretrain.tokens.image_reduction import kept_count
from pretrain.tokens.options import TokenOptions

Axis = Literal["image_px", "keep_tokens", "text_tokens"]
_LABELS: dict[str, str] = {
    "image_px": "image tokens, by picture size",
    "keep_tokens": "image tokens kept, at random",
    "text_tokens": "text tokens",
}
_FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Lengths to evaluate at, one axis at a time, the others as the model's own."""

    image_px: list[int] | None = None
    """Picture sizes, all image tokens kept."""
    keep_tokens: list[int] | None = None
    """Image tokens kept at random of the model's own picture size, the same ones at each call."""
    text_tokens: list[int] | None = None
    """Context lengths; longer texts are cut."""
    plot: Path | None = None
    """Picture of the result: .svg, .png or .pdf."""

    def __post_init__(self) -> None:
        for name in _LABELS:
            for value in getattr(self, name) or []:
                check_positive({f"tokens.{name}": value})
        if not any(getattr(self, name) for name in _LABELS):
            raise ValueError(
                "tokens: there is nothing to compare: give --tokens.image_px, --tokens.keep_tokens "
                "or --tokens.text_tokens, each a list such as [32,64]"
            )
        if self.plot is not None and self.plot.suffix not in _FORMATS:
            raise ValueError(
                f"tokens.plot={self.plot}: name a file ending in {', '.join(_FORMATS)}"
            )


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
    axis: Axis, tokens: TokenOptions, patch_px: int, results: Mapping[str, Any]
) -> dict[str, Any]:
    """One evaluation as the JSON file holds it; token counts without CLS."""
    grid = tokens.image_px // patch_px
    return {
        "axis": axis,
        "image_px": tokens.image_px,
        "image_tokens": kept_count(tokens.image_reduction, grid, tokens.image_keep_tokens),
        "text_tokens": tokens.text_tokens,
        "rates": headline_rates(results),
        "results": dict(results),
    }


def headline_rates(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: {rate, chance, ci95 where known}} of R@1 and top-1 of everything that was judged."""
    rates: dict[str, dict[str, Any]] = {}
    first = KS[0]
    for name, one in results.items():
        if name == "abilities":
            for ability, found in one.items():
                rates[ability] = _top1(found, found["chance"])
            continue
        if name == "probe":
            for way in ("linear", "knn"):
                rates[f"probe {way}"] = _top1(one[way], 1 / one["classes"])
            continue
        for direction in ("image_to_text", "text_to_image"):
            if direction in one:
                found = one[direction]
                rates[f"{name}, {direction.replace('_', ' ')} R@{first}"] = {
                    "rate": found[f"r@{first}"],
                    "chance": found[f"chance_r@{first}"],
                }
        for column, found in one.get("zero_shot", {}).items():
            rates[f"{name}, {column}"] = _top1(found, 1 / found["classes"])
    return rates


def _top1(found: Mapping[str, Any], chance: float) -> dict[str, Any]:
    return {"rate": found["top1"], "chance": chance, "ci95": found["top1_ci95"]}


def draw_sweep(records: list[dict[str, Any]], title: str, file: Path) -> None:
    """One panel an axis: every rate over tokens, its interval as a band, chance dotted."""
    from matplotlib.figure import Figure

    axes_named = [axis for axis in _LABELS if any(one["axis"] == axis for one in records)]
    figure = Figure(figsize=(4.6 * len(axes_named) + 2.4, 4.4), layout="constrained")
    panels = figure.subplots(1, len(axes_named), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for one in records for name in one["rates"]))
    for panel, axis in zip(panels, axes_named, strict=True):
        own = [one for one in records if one["axis"] == axis]
        count = "text_tokens" if axis == "text_tokens" else "image_tokens"
        for place, name in enumerate(names):
            shown = [(one[count], one["rates"][name]) for one in own if name in one["rates"]]
            x, found = [tokens for tokens, _ in shown], [rate for _, rate in shown]
            look: dict[str, Any] = {"color": f"C{place % 10}"}
            panel.plot(x, [100 * one["rate"] for one in found], "o-", label=name, **look)
            panel.plot(x, [100 * one["chance"] for one in found], ":", linewidth=1, **look)
            if all("ci95" in one for one in found):
                low, high = ([100 * one["ci95"][end] for one in found] for end in (0, 1))
                panel.fill_between(x, low, high, alpha=0.12, linewidth=0, **look)
        ticks = sorted({one[count] for one in own})
        panel.set(xlabel=_LABELS[axis], ylim=(0, None))
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("right, in percent (dotted: chance)")
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
