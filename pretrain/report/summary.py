"""What the page states about a run, computed from its records: stages, results, comparison rows."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pretrain.evaluation.task import HEADLINES
from pretrain.report import figures
from pretrain.report.run_folder import Record, Run

DIRECTIONS = (("image_to_text", "image → text"), ("text_to_image", "text → image"))
ABILITIES = "abilities"
CHARTED = {ABILITIES}  # tasks that have charts of their own


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """One stage: what was planned (`record`) and what the metrics say was done."""

    record: Record
    samples: int
    steps: int | None
    images_per_s: float | None
    """Median of the stage's step records."""
    data_wait_share: float | None
    """Seconds that steps waited for data, of their seconds in all."""
    wall_s: float | None
    """Clock time, evaluations and checkpoints included, pauses between a kill and a resume not."""

    @property
    def tokens_per_sample(self) -> int | None:
        """Image and text tokens of one sample, without CLS."""
        image, text = map(figures.number, map(self.record.get, ("image_tokens", "text_tokens")))
        return None if image is None or text is None else round(image + text)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one evaluation: after which stage, at which stage's token lengths."""

    record: Record

    @property
    def after(self) -> str:
        return str(self.record.get("after") or self.record.get("stage") or figures.MISSING)

    @property
    def figures(self) -> list[Record]:
        return figures_of(self.record)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and range of one figure over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def objects(value: object) -> Record:
    """The members of a JSON object that are objects themselves; nothing for anything else."""
    if not isinstance(value, dict):
        return {}
    return {key: member for key, member in value.items() if isinstance(member, dict)}


def summarize_stages(run: Run) -> list[StageSummary]:
    """Every stage that the metrics announce, in order."""
    summaries = []
    wall = _wall_s_by_stage(run)
    for i, stage in enumerate(run.stages):
        following = run.stages[i + 1] if i + 1 < len(run.stages) else None
        steps = [step for step in run.steps if step.get("stage") == stage.get("stage")]
        begin = stage.get("samples_seen") or 0
        end = following.get("samples_seen") or 0 if following else run.samples_seen
        first_step = stage.get("step") or 0
        last_step = following.get("step") if following else run.last_step
        speeds = _finite(steps, "images_per_s")
        waits, seconds = _finite(steps, "data_wait_s"), _finite(steps, "step_s")
        summaries.append(
            StageSummary(
                record=stage,
                samples=max(0, end - begin),
                steps=None if last_step is None else max(0, int(last_step) - first_step),
                images_per_s=statistics.median(speeds) if speeds else None,
                data_wait_share=sum(waits) / sum(seconds) if waits and sum(seconds) else None,
                wall_s=wall.get(str(stage.get("stage"))),
            )
        )
    return summaries


def training_s(run: Run) -> float | None:
    """Seconds spent in training steps, data waits included; evaluation and checkpoints are not."""
    total, before = 0.0, 0
    for step in run.steps:
        at, seconds = step.get("step") or 0, figures.number(step.get("step_s"))
        total, before = total + (at - before) * (seconds or 0.0), at
    return total or None


def figures_of(point: Record | None) -> list[Record]:
    """The figures of an evaluated point that are objects; none of anything else."""
    found = (point or {}).get("figures")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def of_sets(figures: Iterable[Record]) -> list[Record]:
    """Figures that tables and curves show by set; what is drawn by itself is left out."""
    return [one for one in figures if one.get("task") not in CHARTED]


def headlines(figures: Iterable[Record]) -> list[Record]:
    """R@1 and top-1 by set."""
    return [one for one in of_sets(figures) if one.get("name") in HEADLINES]


def collect_results(run: Run) -> list[Result]:
    """The evaluations after each stage; of an unfinished run, the latest of the metrics."""
    points = _points(run)
    if points:
        return [Result(record=point) for point in points]
    latest = {(event.get("stage"), event.get("tokens")): event for event in run.evaluations}
    return [Result(record=event) for event in latest.values()]


def final_figures(run: Run) -> list[Record]:
    """The figures after the last stage, at its own token lengths."""
    points = run.evaluations if run.evaluation is None else _points(run)
    own = [one for one in points if (one.get("after") or one.get("stage")) == one.get("tokens")]
    if not points:
        return []
    last = next((one for one in reversed(own) if "by" not in one), (own or points)[-1])
    # What was judged later, of the same model at the same lengths.
    later = [one for one in own if "by" in one and one.get("after") == last.get("after")]
    if not later:
        return figures_of(last)
    found = {(str(f.get("set")), key_of(f)): f for one in (last, *later) for f in figures_of(one)}
    return list(found.values())


def _points(run: Run) -> list[Record]:
    found = (run.evaluation or {}).get("points")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def set_names(figures: Iterable[Record]) -> list[str]:
    """All names of evaluation sets, in the order in which they first come."""
    return list(dict.fromkeys(str(one.get("set", "")) for one in of_sets(figures)))


Key = tuple[str, str, str]


def key_of(figure: Record) -> Key:
    """(task, part, name): which column of its set's table a figure stands in."""
    return (str(figure.get("task")), str(figure.get("part") or ""), str(figure.get("name")))


def by_key(figures: Iterable[Record], name: str) -> dict[Key, Record]:
    """The figures of one set by their columns."""
    return {key_of(one): one for one in of_sets(figures) if str(one.get("set", "")) == name}


def question(task: str, part: str) -> str:
    """What was asked, for people: `image → text`, `zero-shot sub group`."""
    ways = dict(DIRECTIONS)
    return ways[part] if part in ways else figures.readable(f"{task} {part}".strip())


def sets_of(points: Iterable[Record]) -> Record:
    """{set: {part: {name: value, chance_name: chance, n}}}, as the rows of a comparison file."""
    sets: Record = {}
    for one in of_sets(points):
        part = sets.setdefault(str(one.get("set", "")), {}).setdefault(key_of(one)[1], {})
        name = key_of(one)[2]
        part |= {name: one.get("value"), f"chance_{name}": one.get("chance"), "n": one.get("n")}
    return sets


def spread(values: Iterable[object]) -> Spread | None:
    """Mean and range of the values that are finite numbers; None if none is."""
    finite = [value for value in map(figures.number, values) if value is not None]
    return Spread(values=tuple(finite)) if finite else None


def _wall_s_by_stage(run: Run) -> dict[str, float]:
    """Seconds between consecutive timed events, given to the later one's stage."""
    wall: dict[str, float] = {}
    previous: float | None = None
    stage = ""
    for event in run.events:
        stage = str(event.get("stage") or stage)
        time = figures.number(event.get("time"))
        if time is None:
            continue
        if previous is not None and event["event"] != "start":
            wall[stage] = wall.get(stage, 0.0) + time - previous
        previous = time
    return wall


def _finite(records: Iterable[Record], field: str) -> list[float]:
    return list(_numbers(record.get(field) for record in records))


def _numbers(values: Iterable[object]) -> Iterator[float]:
    for value in values:
        parsed = figures.number(value)
        if parsed is not None:
            yield parsed
