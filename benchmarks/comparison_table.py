"""The rows of a comparison as a table for the terminal, and what they say in one sentence."""

import statistics
from typing import Any

from pretrain.report.summary import DIRECTIONS


def print_comparison(rows: list[dict[str, Any]], claim: str) -> None:
    """Print a line a name, in percent and as means over seeds, and whether the claim holds.

    claim is the name whose rows are held against the others'.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    sets = list(dict.fromkeys(name for row in rows for name in row["sets"]))
    groups = {name: [row for row in rows if row["name"] == name] for name in names}
    widest = max(map(len, names))
    print(f"\nR@1 in percent, {' / '.join(label for _, label in DIRECTIONS)}")
    columns = "".join(f"  {one:>20}" for one in sets)
    print(f"{'':{widest}}  seeds  seconds    samples{columns}")
    for name, group in groups.items():
        seconds, samples = (
            statistics.mean(row[key] for row in group) for key in ("seconds", "samples")
        )
        line = f"{name:{widest}}  {len(group):5}  {seconds:7.1f}  {samples:9,.0f}"
        for one in sets:
            pair = " / ".join(f"{_recall(group, one, way):.1%}" for way, _ in DIRECTIONS)
            line += f"  {pair:>20}"
        print(line)
    print(f"\n{verdict(groups, claim)}")


def verdict(groups: dict[str, list[dict[str, Any]]], claim: str) -> str:
    """One sentence: over which rows the claimed one is ahead, and behind which it is."""
    levels = {name: [_level(row) for row in group] for name, group in groups.items()}
    own = levels[claim]
    parts = []
    for name, theirs in levels.items():
        if name == claim:
            continue
        mean, other = statistics.mean(own), statistics.mean(theirs)
        word = "equal to" if mean == other else "ahead of" if mean > other else "behind"
        apart = min(own) > max(theirs) or max(own) < min(theirs)
        overlap = "" if apart or mean == other else ", within the spread of the seeds"
        parts.append(f"{word} {name} ({other:.1%}{overlap})")
    budget = groups[claim][0]["seconds_budget"]
    if len(own) > 1:
        caution = f"means over {len(own)} seeds"
    else:
        caution = "one seed, so a small difference may be chance"
    return (
        f"At {budget:g} s of training each, {claim} ({statistics.mean(own):.1%}, mean R@1 over all "
        f"sets and both directions) is {' and '.join(parts)}; {caution}."
    )


def _recall(group: list[dict[str, Any]], name: str, way: str) -> float:
    return statistics.mean(row["sets"][name][way]["r@1"] for row in group)


def _level(row: dict[str, Any]) -> float:
    return statistics.mean(one[way]["r@1"] for one in row["sets"].values() for way, _ in DIRECTIONS)
