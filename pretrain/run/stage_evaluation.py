"""Evaluation of a stage's weights, and the files that a run folder keeps of it."""

import json
from typing import Any

from torch import Tensor

from pretrain.models.build import build_model
from pretrain.recipe import Recipe, image_tokens
from pretrain.run.checkpoint import RunState
from pretrain.run.job import Job


def evaluate_stage(
    job: Job,
    name: str,
    state: RunState,
    weights: dict[str, Tensor],
    token_stages: list[str],
    final: bool = False,
) -> None:
    """Evaluate weights, whole and in fp32, at the token lengths of some stages; collective."""
    if not job.evaluator.sets:
        return
    records = []
    for at in token_stages:
        tokens = job.recipe.stages[at].tokens
        model = build_model(
            job.recipe.model,
            tokens=tokens,
            vocab_size=job.dataset.manifest.tokenizer.vocab_size,
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
        records.append(record)
        where = {"stage": name, "samples_seen": state.samples_seen, "step": state.step}
        job.log.event("evaluation", **where, **record)
        for set_name, result in record["sets"].items():
            job.log.say(
                f"{name} step {state.stage_step}, {set_name} at {tokens.image_px} px / "
                f"{tokens.text_tokens} text tokens: R@1 image to text "
                f"{result['image_to_text']['r@1']:.1%}, text to image "
                f"{result['text_to_image']['r@1']:.1%}"
            )
        if final and at == list(job.recipe.stages)[-1]:
            gallery = job.evaluator.gallery(model, job.recipe.seed)
            if job.runtime.is_main:
                (job.recipe.run_dir / "gallery.json").write_text(json.dumps(gallery))
    if final and job.runtime.is_main:
        _write_evaluation(job.recipe, name, state, records)


def _write_evaluation(
    recipe: Recipe, name: str, state: RunState, records: list[dict[str, Any]]
) -> None:
    """evaluation.json: this stage's figures beside earlier stages'; on top its own lengths'."""
    path = recipe.run_dir / "evaluation.json"
    before = list(recipe.stages)[: list(recipe.stages).index(name)]
    known = json.loads(path.read_text())["stages"] if path.is_file() else []
    stages = [record for record in known if record["after"] in before]
    stages += [{"after": name, "samples_seen": state.samples_seen, **r} for r in records]
    own = next(record for record in records if record["tokens"] == name)
    path.write_text(json.dumps({**own["sets"], "stages": stages}, indent=2) + "\n")
