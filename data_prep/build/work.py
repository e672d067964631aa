"""One task: a range of the corpus's rows to shards. A pure function of corpus and options."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.build.far import bring_plan, bring_records, check_work, send_part, send_record
from data_prep.build.options import BuildOptions
from data_prep.build.samples import SampleMaker
from data_prep.build.tasks import (
    WORK_FOLDER,
    Part,
    Plan,
    Task,
    has_plan,
    read_parts,
    remove_work,
    task_folder,
    write_part,
)
from data_prep.build.writer import NewSample, PartWriter, text_members
from data_prep.pool import Pace, Report
from data_prep.rejection import RejectedError
from data_prep.sources import Corpus, Record
from data_prep.text.captions import CaptionTemplate, entries_left_out, parse_templates
from pretrain.base.files import why_not_written
from pretrain.base.lock import locked
from pretrain.tokens.tokenizer import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """What every task of a build needs; it travels to the workers once."""

    options: BuildOptions
    corpus: Corpus
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What was done since the last report."""

    rows: int
    bytes: int
    rejected: dict[str, int]


def templates_of(options: BuildOptions, corpus: Corpus) -> list[CaptionTemplate]:
    """The caption templates, checked against the corpus's columns."""
    return parse_templates(
        options.captions,
        corpus.columns,
        corpus.caption_column,
        corpus.list_columns,
        corpus.object_columns,
    )


def run_task(job: BuildJob, number: int, report: Report) -> None:
    """Make the parts of a task that are missing; whoever holds the task is waited for."""
    out, store = job.options.writer.folder, job.options.writer.store
    folder = task_folder(out, number)
    task = job.plan.tasks[number]
    if store is not None and not has_plan(out):
        with locked(out / WORK_FOLDER):  # on a machine of a cluster, which has not planned
            check_work(store, out)
            bring_plan(store)
    with writing(out):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not has_plan(out):  # another process has done all, and joined it
            remove_work(out)
            return
        if store is not None:
            bring_records(store, [folder], arrays=False)
        parts = read_parts(folder)
        if parts and parts[-1].last:
            return
        tokenizer = open_tokenizer(out / job.plan.tokenizer.file)
        maker = SampleMaker(job.options, templates_of(job.options, job.corpus), tokenizer)
        start = parts[-1].stop if parts else task.start
        records = job.corpus.records(
            job.corpus.columns, with_images=True, start=start, stop=task.stop
        )
        last, stem = False, len(parts)
        while not last:
            bounds = replace(task, start=start)
            part = _make_part(job, maker, records, folder, str(stem), bounds, report)
            start, last, stem = part.stop, part.last, stem + 1


def _make_part(
    job: BuildJob,
    maker: SampleMaker,
    records: Iterator[Record],
    folder: Path,
    stem: str,
    task: Task,
    report: Report,
) -> Part:
    """Records until a shard is full or none is left; the part is then on the disk.

    task: what is left of it.
    """
    options = job.options.writer
    stop, plan = task.stop, job.plan
    tiers, ids = [tier.name for tier in plan.tiers], np.dtype(plan.token_dtype)
    pace, counted = Pace(), Progress(rows=0, bytes=0, rejected={})
    rejected: Counter[str] = Counter()
    seen: set[str] = set()  # keys that repeat in other shards are found when these are joined
    rows, left_out, last = 0, 0, True
    with PartWriter(folder, stem, tiers, len(plan.captions), ids, task.pictures) as writer:
        for record in records:
            rows += 1
            sample = make_sample(maker, record, seen, rejected)
            if sample is not None:
                left_out += entries_left_out(maker.templates, record.columns)
                with writing(options.folder):
                    texts = text_members(sample)
                    writer.add(sample.key, sample.pictures, texts, sample.tokens, sample.stored)
            if pace.is_due():
                counted = _tell(report, counted, rows, writer.bytes, rejected)
            if writer.is_full(options):
                stop, last = record.number + 1, record.number + 1 == task.stop
                break
        with writing(options.folder):
            part = Part(
                start=task.start,
                stop=stop,
                last=last,
                rows=rows,
                samples=writer.samples,
                rejected=dict(rejected),
                captions_left_out=left_out,
                shards=writer.finish(),
            )
            if options.store is not None:
                send_part(options.store, folder, stem)
            write_part(folder, stem, part)
            if options.store is not None:
                send_record(options.store, folder, stem)
    _tell(report, counted, rows, writer.bytes, rejected)
    return part


def make_sample(
    maker: SampleMaker, record: Record, seen: set[str], rejected: Counter[str]
) -> NewSample | None:
    """The record's sample, or None and a reason counted. ValueError names a row that fits none."""
    try:
        return maker.make(record, seen)
    except RejectedError as rejection:
        rejected[rejection.reason] += 1
        return None
    except Exception as error:
        # No known reason: it must not pass as a bad sample, nor end without a place.
        raise ValueError(
            f"{record.place} cannot be made a sample ({type(error).__name__}: {error}); "
            "leave it out, e.g. with --where"
        ) from error


def _tell(
    report: Report, before: Progress, rows: int, written: int, rejected: Counter[str]
) -> Progress:
    """Report what was done since `before`; returns what has been told by now."""
    more = rejected - Counter(before.rejected)
    report(Progress(rows=rows - before.rows, bytes=written - before.bytes, rejected=dict(more)))
    return Progress(rows=rows, bytes=written, rejected=dict(rejected))


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """OSError says why a write failed, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
        raise OSError(
            f"out={out}: {why_not_written(error, folder)}; finished shards are kept: fix this, "
            "or make room, and give the same command again"
        ) from error
