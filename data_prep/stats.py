"""What is in a dataset, counted in one pass in bounded memory: a table, or JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.build.tasks import DOWNLOADS
from data_prep.dataset_tasks import FarOptions
from data_prep.pool import RunOptions
from data_prep.sources.links import describe_counts
from data_prep.survey import SIZES, Survey, Tally, survey
from pretrain.base.checks import check_positive
from pretrain.base.files import write_durably

CONTEXTS = (8, 16, 32, 77)  # text lengths of CLIPA's recipes and of CLIP
SPECIAL_TOKENS = 1  # of a context; towers with bos and eos have two
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """What is counted, and where to"""

    samples: int | None = None
    """Look at so many samples at equal distances. Null: at all."""
    json: Path | None = None
    """File for the same figures as JSON."""

    def __post_init__(self) -> None:
        check_positive({"--samples": self.samples})


def stats(directory: Path, options: StatsOptions, pool: RunOptions, far: FarOptions) -> str:
    """The table of a dataset; the same figures go to options.json. Of a share, what it did."""
    found = survey(directory, options.samples, pool, far.shards)
    if isinstance(found, str):
        return found
    if options.json is not None:
        content = json.dumps(figures_of(found), indent=2, ensure_ascii=False) + "\n"
        write_durably(options.json, content.encode())
    return _format_table(found)


def figures_of(found: Survey) -> dict[str, Any]:
    """The survey as plain values. A tier's `shrunk`: the share of the pictures that are larger than
    it; the others keep their size, so that a tier of 0 only repeats what a larger one holds."""
    return {
        "samples": found.manifest.samples,
        "looked_at": found.looked_at,
        "tiers": {
            name: {
                "shortest_px": tier.shortest_px,
                "shrunk": None
                if tier.shortest_px is None
                else found.sizes["shorter_px"].share_above(tier.shortest_px),
                "shards": len(tier.shards),
                "bytes": tier.bytes,
            }
            for name, tier in found.manifest.tiers.items()
        },
        "pictures": {
            name: {
                q: tally.quantile(share) for q, share in (("min", 0), ("median", 0.5), ("max", 1))
            }
            for name, tally in found.sizes.items()
        },
        "captions": {
            name: _caption_figures(tally, found.looked_at) for name, tally in found.lengths.items()
        },
        "vocabulary": {
            "ids": len(found.token_counts),
            "used": found.used_ids,
        },
        "rejected": found.manifest.rejected,
        "downloads": found.manifest.provenance.get(DOWNLOADS),
        "recaptions": found.recaptions,
    }


def _caption_figures(tally: Tally, looked_at: int) -> dict[str, Any]:
    """Tokens without special ones. cut_at: the share that a context of so many tokens cuts, one of
    which is special."""
    if not tally.total:
        return {"samples": 0}
    return {
        "samples": tally.total,
        "share": tally.total / looked_at,
        "mean": tally.mean,
        "max": tally.quantile(1),
        "percentiles": {f"{share:.0%}": tally.quantile(share) for share in _QUANTILES},
        "cut_at": {str(tokens): tally.share_above(tokens - SPECIAL_TOKENS) for tokens in CONTEXTS},
    }


def _format_table(found: Survey) -> str:
    """The survey for a screen."""
    plain = figures_of(found)
    part = "" if found.looked_at == plain["samples"] else f", {found.looked_at:,} looked at"
    lines = [
        ["dataset", str(found.directory)],
        ["samples", f"{plain['samples']:,}{part}"],
    ]
    for name, tier in plain["tiers"].items():
        px = "own size"
        if tier["shortest_px"]:
            px = f"shortest side {tier['shortest_px']} px, shrunk to it: {tier['shrunk']:.1%}"
        shards = f"{tier['shards']:,} shard" + "s" * (tier["shards"] > 1)
        lines.append([f"tier {name}", f"{tier['bytes'] / 1e6:,.1f} MB, {shards}, {px}"])
    share = found.used_ids / len(found.token_counts)
    used = f"{len(found.token_counts):,} ids, {found.used_ids:,} used ({share:.1%})"
    lines.append(["vocabulary", used])
    lines += [[f"recaption {name}", told] for name, told in found.recaptions.items()]
    if plain["downloads"]:
        lines += map(list, describe_counts(plain["downloads"]))
    lines.append(["rejected", f"{found.rows - plain['samples']:,} of {found.rows:,} rows"])
    lines += [
        [f"  {reason}", f"{count:,} ({count / found.rows:.2%})"]
        for reason, count in found.rejected.items()
    ]
    head = "\n".join(f"{label:<24}{value}" for label, value in lines)
    return "\n\n".join(
        [head, _align_columns(size_rows(plain["pictures"])), *_caption_tables(plain)]
    )


def size_rows(pictures: dict[str, Any]) -> list[list[str]]:
    """Least, middle and greatest of each size, with a heading."""
    return [
        ["pictures", "min", "median", "max"],
        *(
            [SIZES[name], *(f"{told[q]:,g}" for q in ("min", "median", "max"))]
            for name, told in pictures.items()
        ),
    ]


def caption_rows(captions: dict[str, Any]) -> list[list[str]]:
    """Lengths of each caption, with a heading."""
    quantiles, contexts = [f"{share:.0%}" for share in _QUANTILES], [str(c) for c in CONTEXTS]
    rows = [["tokens", "samples", "mean", *quantiles, "max", *(f"cut at {c}" for c in contexts)]]
    for name, told in captions.items():
        if not told["samples"]:
            rows.append([name, "0", *["-"] * (len(rows[0]) - 2)])
            continue
        rows.append(
            [
                *(name, f"{told['samples']:,} ({told['share']:.1%})", f"{told['mean']:.1f}"),
                *(f"{told['percentiles'][quantile]:,g}" for quantile in quantiles),
                f"{told['max']:,g}",
                *(f"{told['cut_at'][context]:.1%}" for context in contexts),
            ]
        )
    return rows


def _caption_tables(plain: dict[str, Any]) -> list[str]:
    """The captions' lengths, and what `cut at` means."""
    note = (
        "Tokens are without special ones; cut at 8: the share of the captions that a context of 8 "
        f"tokens, {SPECIAL_TOKENS} of them special, cuts."
    )
    return [_align_columns(caption_rows(plain["captions"])), note]


def _align_columns(rows: list[list[str]]) -> str:
    """Cells under one another: the first left, the others right."""
    wide = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    )
