"""The page's frame: headline figures, stage table, environment."""

import math
import statistics
from dataclasses import dataclass

from pretrain.evaluation.task import shown_name
from pretrain.report import figures
from pretrain.report.run_folder import METRICS_FILE, Record, Run
from pretrain.report.summary import (
    DIRECTIONS,
    StageSummary,
    final_figures,
    headlines,
    summarize_stages,
)
from pretrain.report.table import Table


@dataclass(frozen=True, kw_only=True)
class Card:
    """One or two figures that matter most, each with a caption, and what they stand against."""

    what: str
    pair: list[tuple[str, str]]
    against: str


def headline_cards(run: Run) -> list[Card]:
    """The first task, speed, the other tasks and training, in rows of one card a set and one
    more."""
    stages = summarize_stages(run)
    groups: dict[str, dict[str, list[Record]]] = {}
    for one in headlines(final_figures(run)):
        of_task = groups.setdefault(str(one.get("task")), {})
        of_task.setdefault(str(one.get("set")), []).append(one)
    tasks = [[_set_card(found) for found in sets.values()] for sets in groups.values()]
    others = [card for cards in tasks[1:] for card in cards]
    cards = [*(tasks[0] if tasks else ()), _speed_card(stages), *others]
    return [card for card in (*cards, _training_card(run, stages)) if card is not None]


def stage_table(run: Run) -> Table | None:
    """One row per stage: its tokens, samples, steps, speed and time."""
    stages = summarize_stages(run)
    head = ["stage", "image px", "image tokens", "text tokens", "tokens / sample", "batch"]
    head += ["steps", "samples", "images/s", "data wait", "wall time"]
    rows = [("", _stage_row(stage)) for stage in stages]
    return Table(head=head, rows=rows) if rows else None


def environment(run: Run) -> str:
    """Where and with what the run was made."""
    if not run.starts:
        return f"No start is recorded in {METRICS_FILE}."
    start = run.starts[-1]
    parts = [f"commit {start.get('commit') or 'unknown'}", *_machine(start)]
    parts += [f"{name} {version}" for name, version in _members(start, "versions")]
    parts.append(figures.plural(len(run.resumes), "resume"))
    replaced = run.samples_replaced
    reasons = f" ({', '.join(f'{name} {count}' for name, count in replaced.items())})"
    parts.append(
        figures.plural(sum(replaced.values()), "sample")
        + f" replaced as unusable{reasons if replaced else ''}"
    )
    parts.append(figures.plural(run.updates_skipped, "update") + " skipped")
    return " · ".join(parts)


def lead(run: Run) -> str:
    """One sentence about the run: its state, its machine, its size."""
    if not run.starts:
        return f"No start is recorded in {METRICS_FILE}: training has not begun, or left no record."
    start = run.starts[-1]
    state = "finished" if run.is_finished else "not finished"
    parts = [f"{figures.plural(len(run.stages), 'stage')}, {state}", *_machine(start)]
    parameters = dict(_members(start, "parameters"))
    if parameters:
        total = sum(filter(None, map(figures.number, parameters.values())))
        towers = " + ".join(f"{name} {_millions(value)}" for name, value in parameters.items())
        parts.append(f"{_millions(total)} parameters ({towers})")
    return " · ".join(parts)


def _machine(start: Record) -> list[str]:
    parts = []
    if start.get("device") is not None:
        ranks = figures.plural(round(figures.number(start.get("world_size")) or 1), "rank")
        parts.append(f"{start['device']}, {ranks}")
    if start.get("zero_stage") is not None:
        parts.append(f"ZeRO {start['zero_stage']}")
    if start.get("precision") is not None:
        parts.append(str(start["precision"]))
    return parts


def _members(record: Record, field: str) -> list[tuple[str, object]]:
    value = record.get(field)
    return list(value.items()) if isinstance(value, dict) else []


def _millions(value: object) -> str:
    """A parameter count: 0.84 M, 86.4 M."""
    parsed = figures.number(value)
    if parsed is None:
        return figures.MISSING
    return f"{figures.decimal(parsed / 1e6, 3 if parsed >= 1e6 else 2)} M"


def _set_card(found: list[Record]) -> Card:
    """The headlines of one task on one set."""
    task, name = str(found[0].get("task")), str(found[0].get("set"))
    pair, chances = [], []
    for one in found:
        asked, classes = str(one.get("part") or ""), figures.number(one.get("classes"))
        label = dict(DIRECTIONS).get(asked, figures.readable(asked))
        label = f"{label} {shown_name(str(one.get('name')))}".strip()
        label += "" if classes is None else f", {figures.count(classes)} classes"
        pair.append((figures.percent(one.get("value")), label))
        chances.append(figures.percent(one.get("chance")))
    against = f"chance {' / '.join(dict.fromkeys(chances))}"
    if any("largest_class" in one for one in found):
        largest = (figures.percent(one.get("largest_class")) for one in found)
        against += f" · largest class {' / '.join(largest)}"
    counts = [n for n in (figures.number(one.get("n")) for one in found) if n]
    rates = [rate for rate in (figures.number(one.get("value")) for one in found) if rate]
    if counts and rates:
        error = statistics.fmean(math.sqrt(rate * (1 - rate) / counts[0]) for rate in rates)
        against += f" · n = {figures.count(counts[0])} · s.e. {100 * error:.1f} points"
    what = figures.readable(task[:1].upper() + task[1:])
    return Card(what=f"{what}, {figures.readable(name)}", pair=pair, against=against)


def _speed_card(stages: list[StageSummary]) -> Card | None:
    speeds = [stage for stage in stages if stage.images_per_s is not None]
    if not speeds:
        return None
    first, last = speeds[0], speeds[-1]
    pair = [(figures.count(first.images_per_s), f"images/s, {first.record.get('stage')}")]
    against = f"{figures.count(first.tokens_per_sample)} tokens per sample"
    if last is not first:
        pair.append((figures.count(last.images_per_s), f"images/s, {last.record.get('stage')}"))
        against = (
            f"{figures.count(first.tokens_per_sample)} and "
            f"{figures.count(last.tokens_per_sample)} tokens per sample"
        )
        if first.images_per_s and last.images_per_s and last.images_per_s < first.images_per_s:
            times = first.images_per_s / last.images_per_s
            names = first.record.get("stage"), last.record.get("stage")
            against += f" · {names[0]} is {times:.1f}× as fast as {names[1]}"
    return Card(what="Speed", pair=pair, against=against)


def _training_card(run: Run, stages: list[StageSummary]) -> Card | None:
    if not stages:
        return None
    pair = [(figures.count(run.samples_seen), "samples seen")]
    seconds = [stage.wall_s for stage in stages if stage.wall_s is not None]
    if seconds:
        pair.append((figures.duration(sum(seconds)), "wall time"))
    steps = sum(stage.steps or 0 for stage in stages)
    against = f"{figures.count(steps)} steps in {figures.plural(len(stages), 'stage')}"
    return Card(what="Training", pair=pair, against=against)


def _stage_row(stage: StageSummary) -> list[str]:
    record = stage.record
    kept, full = record.get("image_tokens"), record.get("image_tokens_full")
    image_tokens = figures.count(kept)
    if kept is not None and full is not None and kept != full:
        image_tokens += f" of {figures.count(full)}"
    steps, planned = figures.count(stage.steps), record.get("steps")
    if planned is not None and planned != stage.steps:
        steps += f" of {figures.count(planned)}"
    return [
        str(record.get("stage", figures.MISSING)),
        figures.count(record.get("image_px")),
        image_tokens,
        figures.count(record.get("text_tokens")),
        figures.count(stage.tokens_per_sample),
        figures.count(record.get("global_batch_samples")),
        steps,
        figures.count(stage.samples),
        figures.count(stage.images_per_s),
        figures.percent(stage.data_wait_share),
        figures.duration(stage.wall_s),
    ]
