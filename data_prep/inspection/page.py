"""The page of an inspection: charts and tables in the report's colours, and the template."""

import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.inspection.contact_sheet import (
    NO_TEXT,
    Caption,
    Shot,
    encode_data_url,
    open_picture_or_none,
    show_token,
)
from data_prep.inspection.kept import (
    GRID,
    IMAGE_PX,
    KEEP_TOKENS,
    PATCH_PX,
    TEXT_TOKENS,
    kept_patches,
    kept_tokens,
    sentences,
)
from data_prep.stats import (
    CONTEXTS,
    SPECIAL_TOKENS,
    caption_rows,
    figures_of,
    size_rows,
)
from data_prep.survey import SIZES, Survey, Tally
from pretrain.report.chart import NARROW, Bar, Chart, bar_chart, row_widths
from pretrain.report.figures import percent, plural, short_bytes
from pretrain.report.histogram import Bin, histogram
from pretrain.report.table import Table
from pretrain.report.template import template

_MOST_BINS = 36
_TAIL = 0.995  # what lies beyond is one bin, so that a few long captions do not flatten the rest
_FREQUENT_TOKENS = 8
_NAMES_PX = 116  # room for the names of the most frequent tokens
_EXAMPLE_TOKENS = 3 * TEXT_TOKENS  # of the caption that the reductions are shown by, or nearly so


def render(found: Survey, shots: list[Shot], pieces: list[str]) -> str:
    """The page as HTML text."""
    plain = figures_of(found)
    caption = _example(shots)
    shown = [token for shot in shots for one in shot.captions for token in one.tokens]
    picture = next((shot for shot in shots if shot.picture and caption in shot.captions), None)
    picture = picture or next((shot for shot in shots if shot.picture), None)
    return template("inspection.html", Path(__file__).parent).render(
        name=found.directory.resolve().name,
        manifest=found.manifest,
        cards=cards(found),
        found=found,
        shots=shots,
        captions=_as_table(caption_rows(plain["captions"])),
        special_tokens=SPECIAL_TOKENS,
        caption_charts=caption_charts(found, pieces),
        sizes=_as_table(size_rows(plain["pictures"])),
        size_charts=size_charts(found),
        rejected=_rejections(found),
        patches=_patch_figures(picture),
        patch_numbers=(IMAGE_PX, PATCH_PX, GRID**2, KEEP_TOKENS),
        no_text=NO_TEXT,
        found_marks={
            "sentence": any(one.begins_sentence for one in shown),
            "space": any(one.text == NO_TEXT for one in shown),
        },
        caption=caption,
        kept=None if caption is None else _caption_figures(caption, found),
        text_tokens=TEXT_TOKENS,
        sentences=0 if caption is None else sentences(caption.classes),
    )


def _example(shots: list[Shot]) -> Caption | None:
    """The caption that shows most: of several sentences if there is one, and of nearly
    EXAMPLE_TOKENS."""
    captions = [caption for shot in shots for caption in shot.captions]
    return max(
        captions,
        key=lambda one: (sentences(one.classes) > 1, -abs(len(one.ids) - _EXAMPLE_TOKENS)),
        default=None,
    )


def cards(found: Survey) -> list[tuple[str, str, str]]:
    """(what, value, beside it) of the figures to begin with."""
    manifest = found.manifest
    sizes = {name: tier.bytes for name, tier in manifest.tiers.items()}
    shards = plural(sum(len(tier.shards) for tier in manifest.tiers.values()), "shard")
    tiers = ", ".join(f"{name}: {short_bytes(size)}" for name, size in sizes.items())
    rejected = sum(found.rejected.values())
    used = percent(found.used_ids / len(found.token_counts))
    side = found.sizes["shorter_px"]
    ids = f"{found.used_ids:,} of {len(found.token_counts):,} ids occur"
    return [
        ("Samples", f"{manifest.samples:,}", f"{percent(rejected / found.rows)} rejected"),
        ("On disk", short_bytes(sum(sizes.values())), f"{shards}; {tiers}"),
        ("Vocabulary in use", used, ids),
        (
            "Shorter side",
            f"{side.quantile(0.5):,} px",
            f"the median; from {side.quantile(0):,} to {side.quantile(1):,} px before the tiers",
        ),
    ]


def _as_table(rows: list[list[str]]) -> Table:
    """Rows with a heading, as the report's template takes them."""
    return Table(head=["", *rows[0][1:]], rows=[("", row) for row in rows[1:]])


def _rejections(found: Survey) -> Table | None:
    """Rows left out by reason; None if none was."""
    rows = [
        ("", [reason, f"{count:,}", percent(count / found.rows)])
        for reason, count in found.rejected.items()
    ]
    return Table(head=["reason", "rows", "of all rows"], rows=rows) if rows else None


def bins_of(tally: Tally, unit: str, step: float = 1) -> list[Bin]:
    """Bins of whole multiples of `step` between the smallest value and the tail's begin; the last
    has the tail too."""
    low, top, last = tally.quantile(0), tally.quantile(_TAIL), tally.quantile(1)
    wide = max(math.ceil((top - low) / step / _MOST_BINS), 1) * step
    count = int((top - low) / wide + 1e-9) + 1
    counts = np.zeros(count, np.int64)
    for value, times in tally.counts.items():
        counts[min(int((value - low) / wide + 1e-9), count - 1)] += times
    bins: list[Bin] = []
    for place, times in enumerate(counts.tolist()):
        begin, end = low + place * wide, low + (place + 1) * wide - step
        end = last if place == count - 1 else end
        name = f"{begin:,g}" if end <= begin else f"{begin:,g} to {end:,g}"
        high = begin + wide - step / 2
        bins.append(Bin(low=begin - step / 2, high=high, count=times, name=f"{name} {unit}"))
    return bins


def caption_charts(found: Survey, pieces: list[str]) -> list[Chart]:
    """The lengths of each caption, with the contexts that cut them; then the tokens."""
    lengths = {name: tally for name, tally in found.lengths.items() if tally.total}
    *widths, occurrences, frequent = row_widths(len(lengths) + 2)
    marks = {tokens - SPECIAL_TOKENS + 0.5: str(tokens) for tokens in CONTEXTS}
    charts = [
        histogram(
            "Tokens per caption" + (f": {name}" if len(found.lengths) > 1 else ""),
            bins_of(tally, "tokens"),
            "tokens",
            width=width,
            keys={"mean": f"{tally.mean:.1f}"},
            marks=marks,
        )
        for (name, tally), width in zip(lengths.items(), widths, strict=True)
    ]
    return [*charts, _occurrences(found, occurrences), _frequent_tokens(found, pieces, frequent)]


def size_charts(found: Survey) -> list[Chart]:
    """Shorter side and aspect of the pictures."""
    return [
        histogram(
            "Pictures by " + SIZES[name].split(",")[0],
            bins_of(found.sizes[name], unit, step),
            label,
            colour="c3",
            keys={"median": f"{found.sizes[name].quantile(0.5):,g}"},
        )
        for name, label, unit, step in (
            ("shorter_px", "px", "px", 1),
            ("aspect", "width / height", "", 0.01),
        )
    ]


def _occurrences(found: Survey, width: int) -> Chart:
    """How many ids occur never, once, twice or thrice, four to seven times, …"""
    levels = np.frexp(found.token_counts.astype(np.float64))[1]  # 0, 1, 2, 2, 3, 3, 3, 3, 4, …
    counts = np.bincount(levels)
    bins: list[Bin] = []
    for level, ids in enumerate(counts.tolist()):
        least, most = int(2 ** (level - 1)), 2**level - 1
        times = f"{least:,}" if most <= least else f"{least:,} to {most:,}"
        name = f"ids that occur {times} times"
        bins.append(Bin(low=level - 0.5, high=level + 0.5, count=ids, name=name))
    every = math.ceil(len(counts) / (4 if width == NARROW else 6))
    names = {float(level): _binary_range(level) for level in range(0, len(counts), every)}
    never = percent(counts[0] / counts.sum())
    label = "occurrences in all captions"
    return histogram(
        *("Token ids by occurrence", bins, label),
        width=width,
        colour="c4",
        keys={"never": never},
        names=names,
    )


def _binary_range(level: int) -> str:
    """The occurrences of a bar for an axis: 0, 1, 2–3, 512–1k."""
    if level < 2:
        return str(level)
    return f"{_binary(level - 1)}–{2**level - 1 if level <= 9 else _binary(level)}"


def _binary(power: int) -> str:
    """A power of two for an axis: 1, 64, 1k for 1024, 32k."""
    return f"{2 ** (power % 10)}{('', 'k', 'M', 'G', 'T', 'P', 'E')[power // 10]}"


def _frequent_tokens(found: Survey, pieces: list[str], width: int) -> Chart:
    """The tokens that occur most, with their share of all."""
    order = np.argsort(-found.token_counts.astype(np.int64), kind="stable")[:_FREQUENT_TOKENS]
    total = max(int(found.token_counts.sum()), 1)
    groups: dict[str, list[Bar]] = {}
    for token in order.tolist():
        share = int(found.token_counts[token]) / total
        bars = [Bar(name="share of all tokens", values=[share], colour="c4")]
        name = spelt(show_token(pieces, token))  # which may both begin a word and go on in one
        groups[name if name not in groups else f"{name} (id {token})"] = bars
    return bar_chart("Most frequent tokens", groups, width=width, names_px=_NAMES_PX)


def spelt(token: str) -> str:
    """A token for an axis, in quotes: “cat”, and by name where it could be taken for dirt."""
    if token == NO_TEXT:
        return "space"
    name = "" if len(token) > 1 or token.isalnum() else unicodedata.name(token, "")
    return f"“{token}” {name.lower()}".strip()


def _patch_figures(shot: Shot | None) -> list[dict[str, Any]]:
    """The same picture for each image reduction, with the patches that it drops."""
    picture = None if shot is None else open_picture_or_none(shot.jpeg)
    if picture is None:
        return []
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    found: list[dict[str, Any]] = []
    for way in kept_patches():
        px = way.grid * PATCH_PX
        resized = square.resize((px, px), Image.Resampling.BICUBIC)
        found.append({"way": way, "picture": encode_data_url(resized), "px": px})
    return found


def _caption_figures(caption: Caption, found: Survey) -> dict[str, list[int]]:
    """Places of the caption's tokens that each text reduction keeps."""
    ids = np.minimum(caption.ids, len(found.token_counts) - 1)
    return kept_tokens(ids, caption.classes, found.token_counts)
