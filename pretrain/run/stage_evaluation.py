"""Evaluation of a stage's weights, and the files that a run folder keeps of it."""

import json
from typing import Any

from torch import Tensor

from pretrain.base.files import write_durably
from pretrain.base.run_files import GALLERY_FILE, METRICS_FILE, read_events
from pretrain.evaluation.kept import write_training
from pretrain.evaluation.task import HEADLINES, Figure, mark_averaged, shown_name
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP
from pretrain.recipe.recipe import Recipe, image_tokens
from pretrain.run.job import Job
from pretrain.run.record import RunState
from pretrain.tokens.options import TokenOptions


def evaluate_stage(
    job: Job,
    name: str,
    state: RunState,
    weights: dict[str, Tensor],
    averaged: dict[str, Tensor] | None,
    token_stages: list[str],
    final: bool = False,
) -> None:
    """Evaluate weights, whole and in fp32, at the token lengths of some stages, and beside them
    their average, where there is one. Collective."""
    if not job.evaluator.judges(final=final):
        return
    records = []
    for at in token_stages:
        tokens = job.recipe.stages[at].tokens
        beside: list[Figure] = []
        if averaged is not None:  # first: one model at a time is on the device
            beside = mark_averaged(
                job.evaluator.evaluate(_build(job, tokens, averaged), final=final)
            )
        model = _build(job, tokens, weights)
        figures = [*job.evaluator.evaluate(model, final=final), *beside]
        record: dict[str, Any] = {
            "tokens": at,
            "image_px": tokens.image_px,
            "image_tokens": image_tokens(job.recipe, job.recipe.stages[at])[1],
            "text_tokens": tokens.text_tokens,
            "figures": [figure.record() for figure in figures],
        }
        records.append(record)
        where = {"stage": name, "samples_seen": state.samples_seen, "step": state.step}
        job.log.event("evaluation", **where, **record)
        _say(job, f"{name} step {state.stage_step}", tokens, figures)
        if final and at == list(job.recipe.stages)[-1]:
            gallery = job.evaluator.gallery(model, job.recipe.seed)
            if job.runtime.is_main and gallery is not None:
                write_durably(job.recipe.run_dir / GALLERY_FILE, json.dumps(gallery))
    if final and job.runtime.is_main:
        _write_evaluation(job.recipe, name, state, records)


def _build(job: Job, tokens: TokenOptions, weights: dict[str, Tensor]) -> CLIP:
    return build_model(
        job.recipe.model,
        tokens=tokens,
        vocabulary=job.dataset.vocabulary,
        device=job.runtime.device,
        weights=weights,
    )


def _say(job: Job, when: str, tokens: TokenOptions, figures: list[Figure]) -> None:
    """A line for people of each task and set: its headlines, chance in brackets."""
    headlines = [one for one in figures if one.name in HEADLINES]
    if any(one.name == "r@1" for one in headlines):
        job.log.say_once(
            "recall",
            "R@1: the share of held-out pictures (captions) whose own caption (picture) is "
            "found first among all; in brackets, what guessing finds",
        )
    lines: dict[tuple[str, str], list[str]] = {}
    for one in headlines:
        asked = f"{one.part.replace('_', ' ')} {shown_name(one.name)}".strip()
        chance = "" if one.chance is None else f" ({one.chance:.2%})"
        lines.setdefault((one.task, one.set), []).append(f"{asked} {one.value:.1%}{chance}")
    for (task, name), shown in lines.items():
        job.log.say(
            f"{when}, {name or task} at {tokens.image_px} px / {tokens.text_tokens} text tokens: "
            + ", ".join(shown)
        )


def _write_evaluation(
    recipe: Recipe, name: str, state: RunState, records: list[dict[str, Any]]
) -> None:
    """evaluation.json: this stage's points after those of earlier stages."""
    points = _earlier_stages(recipe, name)
    points += [{"after": name, "samples_seen": state.samples_seen, **r} for r in records]
    write_training(recipe.run_dir, points)


def _earlier_stages(recipe: Recipe, name: str) -> list[dict[str, Any]]:
    """The figures after each stage before `name`, from the run's metrics, which are the truth.

    Evaluations during a stage are followed by the one at its end: the last one counts.
    """
    before = list(recipe.stages)[: list(recipe.stages).index(name)]
    last: dict[tuple[str, str], dict[str, Any]] = {}
    record = ("samples_seen", "tokens", "image_px", "image_tokens", "text_tokens", "figures")
    # Millions of steps need not be parsed.
    for _, event in read_events(recipe.run_dir / METRICS_FILE, holding='"evaluation"'):
        if event is None or event["event"] != "evaluation" or event.get("stage") not in before:
            continue
        if {*record} <= event.keys():
            last[event["stage"], event["tokens"]] = event
    found = [last[stage, at] for stage in before for at in recipe.stages if (stage, at) in last]
    return [{"after": one["stage"], **{key: one[key] for key in record}} for one in found]
