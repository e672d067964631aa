"""Figures as lines of text, chance in brackets."""

from collections.abc import Iterable

from pretrain.evaluation.task import Figure, group_figures, shown_name

_SHARES = ("largest_class", "indistinct", "longer")  # facts that are shares of one


def table(figures: Iterable[Figure]) -> str:
    """A line for each task, set and part."""
    return "\n".join(_line(names, group) for names, group in group_figures(figures).items())


def _line(names: tuple[str, str, str], group: list[Figure]) -> str:
    first = group[0]
    words = [name.replace("_", " ") for name in names if name]
    words += [_shown(one) for one in group]
    words += [f"n={first.n}", *(_fact(name, value) for name, value in first.facts.items())]
    return "  ".join(words)


def _shown(one: Figure) -> str:
    told = f"{shown_name(one.name)} {one.value:.1%}"
    if one.interval is not None:
        told += f" [95%: {one.interval[0]:.1%} to {one.interval[1]:.1%}]"
    return told if one.chance is None else f"{told} ({one.chance:.2%})"


def _fact(name: str, value: float | str) -> str:
    shown = value if isinstance(value, str) else f"{value:.1%}" if name in _SHARES else f"{value:g}"
    return f"{name.replace('_', ' ')} {shown}"
