"""From a corpus to a dataset directory: the order of things, and nothing else."""

import sys
from collections import Counter
from contextlib import closing

from data_prep.build.estimate import EstimateOptions, estimate, lines_of
from data_prep.build.far import bring_records
from data_prep.build.merge import Built, join, read_built
from data_prep.build.options import BuildOptions
from data_prep.build.plan import prepare, refuse_changed
from data_prep.build.tasks import forget_parts, read_parts, task_folder
from data_prep.build.work import BuildJob, Progress, run_task, writing
from data_prep.pool import run_in_pool, share_of
from pretrain.base.progress import Bar
from pretrain.tokens.tokenizer import open_tokenizer

_MANY_ROWS = 100_000  # a build of as many says first what it takes


def build_dataset(options: BuildOptions) -> Built:
    """Make the dataset directory, or what is missing of it.

    ValueError, FileNotFoundError or FileExistsError name the option to change; they come before
    anything is written, except where no sample is left in the end.
    """
    job = prepare(options)
    if job is None:
        return read_built(options.writer.folder)
    _say_cost(job)
    _run_tasks(job, range(len(job.plan.tasks)))
    with writing(options.writer.folder):
        return join(options.writer.folder, options.run)


def plan_build(options: BuildOptions) -> str:
    """Plan alone; returns what is to be done next."""
    out = options.writer.folder
    job = prepare(options)
    if job is None:
        return f"{out} is finished: there is nothing to plan"
    rows, tasks = job.plan.rows, len(job.plan.tasks)
    return (
        f"{out} is planned: {rows:,} rows in {tasks:,} tasks; give the same command without "
        "--plan-only, once or with --task-index I --task-count N in many processes"
    )


def build_share(options: BuildOptions) -> str:
    """Make the shards of one share of the tasks; returns what is to be done next."""
    out = options.writer.folder
    job = prepare(options)
    if job is None:
        return f"{out} is finished: there is no share to do"
    index, count = options.run.task_index, options.run.task_count
    share = share_of(len(job.plan.tasks), options.run)
    if index == 0:
        _say_cost(job)
    _run_tasks(job, share)
    then = f"python -m data_prep merge {out}"
    if options.writer.store is not None:
        then = "the same command without --task-index and --task-count joins them"
    return (
        f"share {index} of {count} is done: {len(share)} of {len(job.plan.tasks)} tasks; when all "
        f"shares are: {then}"
    )


def _say_cost(job: BuildJob) -> None:
    """On stderr, what a large build takes, before its first sample; nothing where it goes on."""
    options, out = job.options, job.options.writer.folder
    if job.plan.rows < _MANY_ROWS or options.in_place is not None or job.corpus.is_far:
        return
    if any(task_folder(out, number).exists() for number in range(len(job.plan.tasks))):
        return
    tokenizer = open_tokenizer(out / job.plan.tokenizer.file)
    try:
        found = estimate(options, job.corpus, tokenizer, EstimateOptions(), job.plan.rows)
    except (ValueError, OSError) as error:  # the build itself may do without
        print(f"note: no estimate of what this takes ({error})", file=sys.stderr)
        return
    print(*lines_of(found, options), sep="\n", file=sys.stderr)


def _run_tasks(job: BuildJob, numbers: range) -> None:
    """Do what is missing of some tasks, with a line that tells how far it is."""
    out = job.options.writer.folder
    if (store := job.options.writer.store) is not None:
        bring_records(store, [task_folder(out, number) for number in numbers], arrays=False)
    rejected: Counter[str] = Counter()
    rows, todo = 0, []
    for number in numbers:
        parts = read_parts(task_folder(out, number))
        rows += sum(part.rows for part in parts)
        for part in parts:
            rejected.update(part.rejected)
        if not (parts and parts[-1].last):
            todo.append(number)
    written = 0
    total = sum(job.plan.tasks[number].rows for number in numbers)
    with Bar(total=total, done=rows, unit="images", what="build") as bar:

        def show(progress: Progress) -> None:
            nonlocal written
            written += progress.bytes
            rejected.update(progress.rejected)
            seconds = max(bar.format_dict["elapsed"], 1e-3)
            reasons = " ".join(f"{name}={count:,}" for name, count in rejected.most_common(4))
            bar.set_postfix_str(f"{written / 1e6 / seconds:.1f} MB/s {reasons}", refresh=False)
            bar.update(progress.rows)

        with closing(run_in_pool(run_task, job, todo, job.options.run, show)) as running:
            for _ in running:
                pass
    try:
        refuse_changed(job.options, job.corpus.source.state(), job.plan)  # meanwhile
    except FileExistsError:
        for number in todo:  # nobody knows which of them saw the change
            forget_parts(task_folder(out, number))
        raise
