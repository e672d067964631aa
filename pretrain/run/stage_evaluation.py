"""Evaluation of a stage's weights, and the files that a run folder keeps of it."""

import json
from typing import Any

from torch import Tensor

from pretrain.base.files import write_durably
from pretrain.base.run_files import EVALUATION_FILE, GALLERY_FILE, METRICS_FILE
from pretrain.models.build import build_model
from pretrain.recipe.recipe import Recipe, image_tokens
from pretrain.run.job import Job
from pretrain.run.record import RunState


def evaluate_stage(
    job: Job,
    name: str,
    state: RunState,
    weights: dict[str, Tensor],
    token_stages: list[str],
    final: bool = False,
) -> None:
    """Evaluate weights, whole and in fp32, at the token lengths of some stages; collective."""
    if not (job.evaluator.judges if final else job.evaluator.sets):
        return
    records = []
    for at in token_stages:
        tokens = job.recipe.stages[at].tokens
        model = build_model(
            job.recipe.model,
            tokens=tokens,
            vocabulary=job.dataset.vocabulary,
            device=job.runtime.device,
            weights=weights,
        )
        record: dict[str, Any] = {
            "tokens": at,
            "image_px": tokens.image_px,
            "image_tokens": image_tokens(job.recipe, job.recipe.stages[at])[1],
            "text_tokens": tokens.text_tokens,
            "sets": job.evaluator.evaluate(model),
        }
        if final and (abilities := job.evaluator.abilities(model)):
            record["abilities"] = abilities
        records.append(record)
        where = {"stage": name, "samples_seen": state.samples_seen, "step": state.step}
        job.log.event("evaluation", **where, **record)
        if job.evaluator.sets:
            job.log.say_once(
                "recall",
                "R@1: the share of held-out pictures (captions) whose own caption (picture) is "
                "found first among all; in brackets, what guessing finds",
            )
        for set_name, result in record["sets"].items():
            to_text, to_image = result["image_to_text"], result["text_to_image"]
            job.log.say(
                f"{name} step {state.stage_step}, {set_name} at {tokens.image_px} px / "
                f"{tokens.text_tokens} text tokens: R@1 image to text {to_text['r@1']:.1%} "
                f"({to_text['chance_r@1']:.2%}), text to image {to_image['r@1']:.1%} "
                f"({to_image['chance_r@1']:.2%})"
            )
        if "abilities" in record:
            shares = (
                f"{ability} {one['top1']:.0%} ({one['chance']:.0%})"
                for ability, one in record["abilities"].items()
            )
            job.log.say(
                f"abilities after {name} at {tokens.image_px} px, in brackets chance: "
                + ", ".join(shares)
            )
        if final and job.evaluator.sets and at == list(job.recipe.stages)[-1]:
            gallery = job.evaluator.gallery(model, job.recipe.seed)
            if job.runtime.is_main:
                write_durably(job.recipe.run_dir / GALLERY_FILE, json.dumps(gallery))
    if final and job.runtime.is_main:
        _write_evaluation(job.recipe, name, state, records)


def _write_evaluation(
    recipe: Recipe, name: str, state: RunState, records: list[dict[str, Any]]
) -> None:
    """evaluation.json: this stage's figures beside earlier stages'; on top its own lengths'."""
    stages = _earlier_stages(recipe, name)
    stages += [{"after": name, "samples_seen": state.samples_seen, **r} for r in records]
    own = next(record for record in records if record["tokens"] == name)
    write_durably(
        recipe.run_dir / EVALUATION_FILE,
        json.dumps({**own["sets"], "stages": stages}, indent=2) + "\n",
    )


def _earlier_stages(recipe: Recipe, name: str) -> list[dict[str, Any]]:
    """The figures after each stage before `name`, from the run's metrics, which are the truth.

    Evaluations during a stage are followed by the one at its end: the last one counts.
    """
    before = list(recipe.stages)[: list(recipe.stages).index(name)]
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for line in (recipe.run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        if '"evaluation"' not in line:
            continue  # millions of steps need not be parsed
        event = json.loads(line)
        if event["event"] == "evaluation" and event["stage"] in before:
            last[event["stage"], event["tokens"]] = event
    found = [last[stage, at] for stage in before for at in recipe.stages if (stage, at) in last]
    record = ("samples_seen", "tokens", "image_px", "image_tokens", "text_tokens", "sets")
    return [
        {"after": one["stage"], **{key: one[key] for key in (*record, "abilities") if key in one}}
        for one in found
    ]
