"""Evaluate an export or a finished stage of a run, on the recipe's sets or others, on any ranks.

python -m pretrain.evaluate --model runs/demo [--stage full] [--image_px 64] [--text_tokens 24]
python -m pretrain.evaluate --model EXPORT --classification.images DIR --classification.classes FILE
python -m pretrain.evaluate --model EXPORT --probe.train DIR --probe.test DIR
python -m pretrain.evaluate --model M --abilities true --tokens.image_px [32,64] --tokens.plot F.svg
python -m pretrain.evaluate --watch runs/demo    # each checkpoint, while another job trains
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from pretrain.base import distributed
from pretrain.base.checks import check_positive
from pretrain.base.faults import end_well, ended_at_once, one_line_faults
from pretrain.base.files import write_durably
from pretrain.base.run_files import WATCHED_FILE
from pretrain.evaluation.classification import Classification, ClassificationOptions
from pretrain.evaluation.evaluator import Evaluator, metadata_columns
from pretrain.evaluation.options import AbilitiesOptions, EvaluationOptions
from pretrain.evaluation.probe import Probe, ProbeOptions
from pretrain.evaluation.sweep import (
    Axis,
    SweepOptions,
    draw_sweep,
    kept_tokens,
    point_record,
    sweep_points,
)
from pretrain.evaluation.table import table
from pretrain.recipe.parsing import read_recipe
from pretrain.subject import Subject, found, lengths, of_stage
from pretrain.tokens.image_reduction import kept_count
from pretrain.tokens.options import TokenOptions
from pretrain.watch import watch as watch_run

# A collective waits for the main rank, which alone fits the linear probe: hours on large sets.
_TIMEOUT_S = 24 * 3600.0


def main(
    model: Path | None = None,
    run_dir: Path | None = None,
    watch: Path | None = None,
    poll_s: float = 30.0,
    stage: str | None = None,
    image_px: int | None = None,
    text_tokens: int | None = None,
    sets: dict[str, Path] | None = None,
    captions: list[str] | None = None,
    classification: ClassificationOptions | None = None,
    probe: ProbeOptions | None = None,
    abilities: AbilitiesOptions | bool = False,
    tokens: SweepOptions | None = None,
    out: Path | None = None,
) -> None:
    """Retrieval and zero-shot accuracy of a trained model, with chance beside each figure.

    Args:
        model: Folder of an exported model (native or transformers), or of a run.
        run_dir: Run folder of a training run: the same as --model.
        watch: Run folder whose checkpoints to judge, each once, until the run has ended.
        poll_s: With --watch, seconds between two looks for a new checkpoint.
        stage: Stage whose weights to evaluate; by default the recipe's last.
        image_px: Picture size; by default the stage's own.
        text_tokens: Context length; by default the stage's own.
        sets: Dataset directories by name; by default, unless another task is asked for, the
            recipe's evaluation sets.
        captions: Names of the captions that count as a picture's own; by default the recipe's,
            which by default are each set's first.
        classification: Zero-shot classification of a labelled set.
        probe: Linear probe and k-nearest neighbours on frozen features of two labelled sets.
        abilities: Counting, digits, words, position, binding, size, rotation and texture, on
            pictures drawn for it by a seed: true, or its options.
        tokens: Lengths to compare the same weights at, with a plot.
        out: JSON file to write the figures to; by default they are only printed. With --watch a
            file of JSON lines to append to, by default watched.jsonl in the run folder.
    """
    with one_line_faults():
        check_positive({"poll_s": poll_s})
        folder = _one_of(model=model, run_dir=run_dir, watch=watch)
        task = None if classification is None else Classification(classification)
        fitted = None if probe is None else Probe(probe)
        if watch is None:
            subject = found(folder, stage)
        else:
            _check_watch(stage, tokens)
            recipe = read_recipe(watch)
            subject = of_stage(recipe, list(recipe.stages)[-1], {})
        own = lengths(subject, image_px, text_tokens)
        points = [] if tokens is None else _checked_points(tokens, own, subject)
        options = subject.evaluation
        if sets is not None:
            options = _on_other_sets(options, sets)
        elif task is not None or fitted is not None or abilities:
            options = replace(options, sets={}, zero_shot={}, abilities=False)
        if abilities:
            options = replace(options, abilities=abilities)
        if captions is not None:
            options = replace(options, captions=captions)
        evaluator = Evaluator(
            options,
            image_sizes={one.image_px for _, one in points} or {own.image_px},
            tokenizer=subject.tokenizer,
            normalisation=subject.normalisation,
        )
        if not evaluator.judges and task is None and fitted is None:
            raise ValueError(
                "there are no evaluation sets: give some by --sets.NAME DIR, labelled ones by "
                "--classification.images DIR or --probe.train DIR --probe.test DIR, or "
                "draw some by --abilities true"
            )
    runtime = distributed.start(timeout_s=_TIMEOUT_S)

    def judge(subject: Subject, at: TokenOptions) -> dict[str, Any]:
        clip, kept = subject.build(at, runtime.device), kept_tokens(at)
        results = evaluator.evaluate(clip, kept)
        if task is not None:
            figures = task.evaluate(clip, subject.tokenizer, subject.normalisation, kept)
            results["classification"] = {"zero_shot": {task.options.images.name: figures}}
        if fitted is not None:
            figures = fitted.evaluate(clip, subject.normalisation, runtime.is_main, kept)
            results["probe"] = figures
        if drawn := evaluator.abilities(clip, kept):
            results["abilities"] = drawn
        return results

    def judge_checkpoint(its: Subject) -> tuple[TokenOptions, dict[str, Any]]:
        at = lengths(its, image_px, text_tokens)
        return at, judge(its, at)

    with ended_at_once():
        if watch is not None:
            watch_run(
                watch,
                out or watch / WATCHED_FILE,
                judge_checkpoint,
                poll_s=poll_s,
                runtime=runtime,
            )
        elif tokens is None:
            results = judge(subject, own)
            if runtime.is_main:
                print(table(results))
        else:
            results = _sweep(
                points,
                lambda at: judge(subject, at),
                subject.model.image.patch_px,
                runtime.is_main,
            )
            if runtime.is_main and tokens.plot is not None:
                draw_sweep(results["points"], str(folder), tokens.plot)
        if runtime.is_main and out is not None and watch is None:
            write_durably(out, json.dumps(results, indent=2) + "\n")
    distributed.stop()


def _sweep(
    points: list[tuple[Axis, TokenOptions]],
    judge: Callable[[TokenOptions], dict[str, Any]],
    patch_px: int,
    is_main: bool,
) -> dict[str, Any]:
    """{points: [record]} on the main rank; lengths that two axes share are judged once."""
    judged: dict[TokenOptions, dict[str, Any]] = {}
    records = []
    for axis, at in points:
        if at not in judged:
            judged[at] = judge(at)
        if is_main:
            record = point_record(axis, at, patch_px, judged[at])
            records.append(record)
            print(
                f"{at.image_px} px, {record['image_tokens']} image and "
                f"{at.text_tokens} text tokens\n{table(judged[at])}",
                flush=True,
            )
    return {"points": records}


def _checked_points(
    options: SweepOptions, own: TokenOptions, subject: Subject
) -> list[tuple[Axis, TokenOptions]]:
    points = sweep_points(options, own)
    for axis, at in points:
        try:
            lengths(subject, at.image_px, at.text_tokens)
            grid = at.image_px // subject.model.image.patch_px
            kept_count(at.image_reduction, grid, at.image_keep_tokens)
        except ValueError as error:
            raise ValueError(f"tokens.{axis}: {error}") from error
    return points


def _one_of(**folders: Path | None) -> Path:
    given = [folder for folder in folders.values() if folder is not None]
    if len(given) != 1:
        asked = ", ".join(f"--{name} {folder}" for name, folder in folders.items())
        raise ValueError(
            f"{asked}: give one of them, the folder of an exported model or of a run, or of a run "
            "to watch"
        )
    return given[0]


def _check_watch(stage: str | None, tokens: SweepOptions | None) -> None:
    if stage is not None or tokens is not None:
        raise ValueError(
            "--watch judges each checkpoint at its own stage's lengths, or at --image_px and "
            "--text_tokens: leave --stage and --tokens out"
        )


def _on_other_sets(options: EvaluationOptions, sets: dict[str, Path]) -> EvaluationOptions:
    """The recipe's tasks on given sets; those whose column a set lacks are left out, and said."""
    tasks = dict(options.zero_shot)
    for name, directory in sets.items():
        columns = metadata_columns(f"evaluation.sets.{name}", directory)
        for column in [column for column in tasks if column not in columns]:
            print(f"zero-shot {column} is left out: {directory} has no such metadata", flush=True)
            del tasks[column]
    return replace(options, sets=sets, zero_shot=tasks)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
    end_well()
