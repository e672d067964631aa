"""The abilities: what each stage's model can see, as bars beside chance."""

from pretrain.report import figures
from pretrain.report.chart import Bar, Chart, bar_chart
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import ABILITIES, Result, collect_results

_CHARTS = {
    "Abilities: counting and reading": ("counting", "digits", "words", "texture"),
    "Abilities: arrangement": ("position", "binding", "size", "rotation"),
}
_COLOURS = 4


def ability_charts(run: Run) -> list[Chart]:
    """Bars by ability and evaluation; none where no evaluation judged abilities."""
    judged = [r for r in collect_results(run) if _list_figures(r)]
    own = [r for r in judged if r.record.get("tokens") in (r.after, None)]
    shown = (judged if len(judged) <= _COLOURS else own)[-_COLOURS:]
    charts = []
    for title, names in _CHARTS.items():
        groups: dict[str, list[Bar]] = {}
        chances: dict[str, float] = {}
        for name in names:
            bars = [_bar(r, name, colour) for colour, r in enumerate(shown, start=1)]
            if known := [bar for bar in bars if bar is not None]:
                groups[name] = known
            for result in shown:
                chance = figures.number(_list_figures(result).get(name, {}).get("chance"))
                if chance is not None:
                    chances[name] = chance
        if groups:
            charts.append(
                bar_chart(title, groups, references=chances, reference_name="chance", reach=1.0)
            )
    return charts


def indistinct_note(run: Run) -> str:
    """Which questions no model could answer, at which lengths; empty where there is none."""
    found = []
    for result in collect_results(run):
        lost = {
            name: share
            for name, one in _list_figures(result).items()
            if (share := figures.number(one.get("indistinct")))
        }
        if lost:
            each = ", ".join(f"{name} {figures.percent(share)}" for name, share in lost.items())
            found.append(f"{_name(result)}: {each}")
    return "; ".join(found)


def _list_figures(result: Result) -> dict[str, Record]:
    """The figures by ability; those of averaged weights, which name a set, have no bars."""
    own = [one for one in result.figures if one.get("task") == ABILITIES and not one.get("set")]
    return {str(one.get("part")): one for one in own}


def _bar(result: Result, name: str, colour: int) -> Bar | None:
    one = _list_figures(result).get(name, {})
    top1 = figures.number(one.get("value"))
    if top1 is None:
        return None
    ends = one.get("interval")
    bounds = [figures.number(end) for end in ends] if isinstance(ends, list) else []
    interval = (bounds[0], bounds[1]) if len(bounds) == 2 and None not in bounds else None
    return Bar(name=_name(result), values=[top1], colour=f"c{colour}", interval=interval)  # type: ignore[arg-type]


def _name(result: Result) -> str:
    tokens = result.record.get("tokens")
    name = f"after {result.after}"
    return name if tokens in (None, result.after) else f"{name}, at {tokens} tokens"
