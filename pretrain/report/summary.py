"""What the page states about a run, computed from its records: stages, results, comparison rows."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pretrain.report import figures
from pretrain.report.run_folder import Record, Run

DIRECTIONS = (("image_to_text", "image → text"), ("text_to_image", "text → image"))


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
        image, text = self.record.get("image_tokens"), self.record.get("text_tokens")
        return None if image is None or text is None else int(image) + int(text)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one evaluation: after which stage, at which stage's token lengths."""

    record: Record

    @property
    def after(self) -> str:
        return str(self.record.get("after") or self.record.get("stage") or figures.MISSING)

    @property
    def sets(self) -> Record:
        return objects(self.record.get("sets"))


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


def collect_results(run: Run) -> list[Result]:
    """The evaluations after each stage; of an unfinished run, the latest of the metrics."""
    stages = (run.evaluation or {}).get("stages")
    if isinstance(stages, list):
        listed = [Result(record=stage) for stage in stages if isinstance(stage, dict)]
        if listed:
            return listed
    final = final_sets(run)
    if run.evaluation is not None and final:
        return [Result(record={"after": "training", "sets": final})]
    latest = {(event.get("stage"), event.get("tokens")): event for event in run.evaluations}
    return [Result(record=event) for event in latest.values()]


def final_sets(run: Run) -> Record:
    """The evaluation sets' figures after the last stage, at its own token lengths."""
    if run.evaluation is not None:
        named = {name: one for name, one in objects(run.evaluation).items() if is_set(one)}
        stages = run.evaluation.get("stages")
        if named or not isinstance(stages, list) or not stages:
            return named
        return objects(objects({"last": stages[-1]}).get("last", {}).get("sets"))
    own = [event for event in run.evaluations if event.get("stage") == event.get("tokens")]
    return objects((own or run.evaluations)[-1].get("sets")) if run.evaluations else {}


def is_set(value: Record) -> bool:
    """Whether an object holds the figures of an evaluation set."""
    return any(key in value for key in ("image_to_text", "text_to_image", "zero_shot"))


def set_names(groups: Iterable[Record]) -> list[str]:
    """All names of evaluation sets, in the order in which they first come."""
    return list(dict.fromkeys(name for sets in groups for name in sets))


def recall_ks(sets: Iterable[Record]) -> list[int]:
    """Every k of the `r@k` fields of these sets, ascending."""
    ks = set()
    for one in sets:
        for direction, _ in DIRECTIONS:
            for field in objects(one).get(direction, {}):
                if field.startswith("r@") and field[2:].isdecimal():
                    ks.add(int(field[2:]))
    return sorted(ks)


def group_comparison(rows: object) -> dict[str, list[Record]]:
    """The rows of a comparison file by name, in the order in which the names first come."""
    groups: dict[str, list[Record]] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            groups.setdefault(str(row.get("name", figures.MISSING)), []).append(row)
    return groups


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
