"""The work of `python -m pretrain.evaluate`: a model, or a run's checkpoints, by all tasks."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pretrain.base import distributed
from pretrain.base.faults import ended_at_once, one_line_faults
from pretrain.base.files import write_durably
from pretrain.base.run_files import WATCHED_FILE
from pretrain.evaluation.evaluator import Evaluator
from pretrain.evaluation.kept import join, run_folder_of
from pretrain.evaluation.options import (
    Axis,
    EvaluateOptions,
    EvaluationOptions,
    SweepOptions,
    TaskOptions,
)
from pretrain.evaluation.sets import metadata_columns
from pretrain.evaluation.sweep import draw_sweep, kept_tokens, point_record, sweep_points
from pretrain.evaluation.table import table
from pretrain.evaluation.task import Figure, mark_averaged
from pretrain.recipe.parsing import read_recipe
from pretrain.subject import EvaluatedModel, find_model, lengths, of_stage
from pretrain.tokens.image_reduction import kept_count
from pretrain.tokens.options import TokenOptions
from pretrain.watch import watch

# A collective waits for the main rank, which alone fits the linear probe: hours on large sets.
_TIMEOUT_S = 24 * 3600.0
# Fields that say how tasks are done, and ask for none.
_MANNERS = {"zero_shot", "captions", "tier"}

Point = tuple[Axis | None, TokenOptions]


def evaluate(options: EvaluateOptions) -> None:
    """Print the figures, and write them to --out or the run folder. ValueError names what cannot
    be, before any model is put on a device. Collective."""
    if options.watch is None:
        source = find_model(
            options.model or options.run_dir or Path(), options.stage, options.weights
        )
    else:
        recipe = read_recipe(options.watch)
        source = of_stage(recipe, list(recipe.stages)[-1], {})
    own = lengths(source, options.image_px, options.text_tokens)
    points: list[Point] = [(None, own)]
    if options.tokens is not None:
        points = _check_points(options.tokens, own, source)
    evaluator = Evaluator(
        choose_tasks(options, source.evaluation),
        image_sizes={at.image_px for _, at in points},
        tokenizer=source.tokenizer,
        normalisation=source.normalisation,
    )
    if not evaluator.tasks:
        raise ValueError(
            "there are no evaluation sets: give some by --sets.NAME DIR, labelled ones by "
            "--classification.images DIR or --probe.train DIR --probe.test DIR, or "
            "draw some by --abilities true"
        )
    runtime = distributed.start(timeout_s=_TIMEOUT_S)

    def judge(one: EvaluatedModel, at: TokenOptions) -> list[Figure]:
        with one_line_faults(known_to_all=True):  # weights that are not this model's
            model = one.build(at, runtime.device)
        figures = evaluator.evaluate(model, kept_tokens(at))
        return figures if options.weights == "plain" else mark_averaged(figures)

    def judge_checkpoint(one: EvaluatedModel) -> tuple[TokenOptions, list[Figure]]:
        at = lengths(one, options.image_px, options.text_tokens)
        return at, judge(one, at)

    with ended_at_once():
        if options.watch is not None:
            out = options.out or options.watch / WATCHED_FILE
            watch(options.watch, out, judge_checkpoint, poll_s=options.poll_s, runtime=runtime)
        else:
            judged: dict[TokenOptions, list[Figure]] = {}
            for _, at in points:
                if at not in judged:
                    judged[at] = judge(source, at)
                    if runtime.is_main:
                        _show(at, source, judged[at])
            if runtime.is_main:
                _write(options, source, points, judged)
    distributed.stop()


def choose_tasks(given: EvaluateOptions, own: EvaluationOptions) -> EvaluationOptions:
    """The tasks of a command line. Without any they are the run's own; `sets` alone, the run's own
    on other sets; any other task is judged alone."""
    named = {one.name: getattr(given, one.name) for one in fields(TaskOptions)}
    empty = {name: getattr(EvaluationOptions(), name) for name in named}
    said = {name: value for name, value in named.items() if value != empty[name]}
    if "sets" in said:
        zero_shot = given.zero_shot or _possible(own.zero_shot, given.sets)
        return replace(own, **{**said, "zero_shot": zero_shot})
    if said.keys() - _MANNERS:
        manners = {name: getattr(own, name) for name in ("captions", "tier")}
        return replace(own, **{**empty, **manners, **said})
    return replace(own, **said)


def _possible(zero_shot: dict[str, Any], sets: dict[str, Path]) -> dict[str, Any]:
    """A run's zero-shot tasks on other sets; one whose column a set lacks is left out and said."""
    tasks = dict(zero_shot)
    for name, directory in sets.items():
        columns = metadata_columns(f"evaluation.sets.{name}", directory)
        for column in [column for column in tasks if column not in columns]:
            print(f"zero-shot {column} is left out: {directory} has no such metadata", flush=True)
            del tasks[column]
    return tasks


def _show(at: TokenOptions, source: EvaluatedModel, figures: Sequence[Figure]) -> None:
    record = point_record(None, at, source.model.image.patch_px, ())
    print(
        f"{at.image_px} px, {record['image_tokens']} image and {at.text_tokens} text tokens\n"
        f"{table(figures)}",
        flush=True,
    )


def _write(
    options: EvaluateOptions,
    source: EvaluatedModel,
    points: Sequence[Point],
    judged: dict[TokenOptions, list[Figure]],
) -> None:
    """The plot and the file that were asked for; of a run, without --out, its evaluation.json."""
    patch_px = source.model.image.patch_px
    if options.tokens is not None and options.tokens.plot is not None:
        lines = [(axis, at, judged[at]) for axis, at in points if axis is not None]
        title = str(options.model or options.run_dir)
        draw_sweep(lines, patch_px, title, options.tokens.plot)
    records = [point_record(axis, at, patch_px, judged[at]) for axis, at in points]
    model = options.model or options.run_dir or Path()
    if options.out is not None:
        write_durably(options.out, json.dumps({"points": records}, indent=2) + "\n")
    elif (run_dir := run_folder_of(model)) is not None:
        own = point_record(None, lengths(source, None, None), patch_px, ())
        for record in records:
            is_own = all(record[name] == own[name] for name in own if name != "figures")
            record["after"] = model.resolve().name if source.stage is None else source.stage
            record["tokens"] = record["after"] if is_own else "other"
        print(join(run_dir, records))


def _check_points(options: SweepOptions, own: TokenOptions, source: EvaluatedModel) -> list[Point]:
    points: list[Point] = []
    for axis, at in sweep_points(options, own):
        try:
            lengths(source, at.image_px, at.text_tokens)
            grid = at.image_px // source.model.image.patch_px
            kept_count(at.image_reduction, grid, at.image_keep_tokens)
        except ValueError as error:
            raise ValueError(f"tokens.{axis}: {error}") from error
        points.append((axis, at))
    return points
