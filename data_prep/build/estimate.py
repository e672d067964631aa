"""What a build takes, from a sample: the build's own samples, written as it writes them, and
thrown away."""

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.build.first_pass import train_on_corpus
from data_prep.build.options import BuildOptions
from data_prep.build.plan import given_model, open_corpus, tiers_of
from data_prep.build.samples import SampleMaker
from data_prep.build.work import make_sample, templates_of
from data_prep.build.writer import PartWriter, text_members
from data_prep.pool import usable_workers
from data_prep.sources import Corpus, Record
from pretrain.base.checks import check_positive
from pretrain.dataset.manifest import index_dtype
from pretrain.report.figures import duration, plural, short_bytes
from pretrain.tokens.tokenizer import Tokenizer, parse_tokenizer

_PLACES = 32  # of a source on this machine, at which groups of rows are sampled
_FAR_PLACES = 4  # each may bring a whole file
_LOOKED_ROWS = 4096  # at each place, for those that pass --where
_CAPTIONS = 8192  # that the tokenizer of a sample is trained on
_PEAK_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """How much of the source is looked at"""

    sample_rows: int = 512
    """Rows that samples are made of, in groups at equal distances."""

    def __post_init__(self) -> None:
        check_positive({"--sample-rows": self.sample_rows})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build of `rows` rows takes, by a sample of them."""

    rows: int  # that pass --where
    is_exact: bool  # whether they were counted
    sampled: int
    rejected: Counter[str]  # of the sample
    picture_bytes: int  # that the sample read
    tier_bytes: dict[str, int]  # that the sample wrote
    index_bytes: int  # of a sample in a tier
    cpu_s: float  # for the sample, without reading
    peak_bytes: int  # of memory, of the process that made the sample
    spread: float | None  # half of the 95 % interval of the written bytes, as a share of them

    @property
    def share(self) -> float:
        """How many times the sample the whole is."""
        return self.rows / self.sampled

    @property
    def samples(self) -> int:
        return round((self.sampled - self.rejected.total()) * self.share)

    @property
    def written(self) -> dict[str, float]:
        """Bytes of each tier's shards and index."""
        index = self.index_bytes * self.samples
        return {name: size * self.share + index for name, size in self.tier_bytes.items()}


def plan_of(options: BuildOptions, sampling: EstimateOptions) -> str:
    """What a build with these options would take; nothing of it is built."""
    corpus = open_corpus(options)
    model = given_model(options)
    if model is None:
        few = min(_CAPTIONS, options.vocabulary.tokenizer_captions)
        vocabulary = replace(options.vocabulary, tokenizer_captions=few)
        asked = replace(options, vocabulary=vocabulary)
        model = train_on_corpus(corpus, templates_of(options, corpus), asked)
    given = options.vocabulary.tokenizer or Path("tokenizer.model")
    found = estimate(options, corpus, parse_tokenizer(given, model), sampling)
    return "\n".join(lines_of(found, options))


def estimate(
    options: BuildOptions,
    corpus: Corpus,
    tokenizer: Tokenizer,
    sampling: EstimateOptions,
    rows: int | None = None,
) -> Estimate:
    """Make samples of some rows, and count what that takes.

    rows: how many pass --where, if that is known. ValueError where none of the sample does.
    """
    groups, passing = _spaced_rows(corpus, sampling.sample_rows)
    if not groups:
        raise ValueError(
            f"where={options.source.where!r}: none of the rows that were looked at, of "
            f"{corpus.rows:,}, passes; change --where, or add --sample-rows for more places"
        )
    maker = SampleMaker(options, templates_of(options, corpus), tokenizer)
    tiers = [tier.name for tier in tiers_of(options)]
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    sampled = read = 0
    cpu_s, written = 0.0, []
    _PEAK_RESET.write_text("5")  # proc_pid_clear_refs(5): the peak begins anew
    with (
        tempfile.TemporaryDirectory() as folder,
        PartWriter(Path(folder), "0", tiers, len(maker.templates), maker.dtype) as writer,
    ):
        for group in groups:
            before = writer.bytes
            for record in _records(corpus, group):
                if not sampled:  # what is loaded once is no part of a row's time
                    make_sample(maker, record, set(), Counter())
                began = time.process_time()
                sample = make_sample(maker, record, seen, rejected)
                if sample is not None:
                    texts = text_members(sample)
                    writer.add(sample.key, sample.pictures, texts, sample.tokens, sample.stored)
                cpu_s += time.process_time() - began
                sampled += 1
                read += len(record.image or b"")
            written.append((writer.bytes - before) / len(group))
        tier_bytes = {tier: shard.bytes for tier, shard in writer.shards.items()}
        began = time.process_time()
        writer.finish()
        cpu_s += time.process_time() - began
    return Estimate(
        rows=rows or round(corpus.rows * passing),
        is_exact=rows is not None or corpus.where is None,
        sampled=sampled,
        rejected=rejected,
        picture_bytes=read,
        tier_bytes=dict.fromkeys(tiers, 0) | tier_bytes,
        index_bytes=index_dtype(len(maker.templates)).itemsize,
        cpu_s=cpu_s,
        peak_bytes=_peak_bytes(),
        spread=_spread(written),
    )


def _spaced_rows(corpus: Corpus, count: int) -> tuple[list[np.ndarray], float]:
    """About `count` rows that pass --where in groups of neighbours at equal distances, and the
    share of rows that pass."""
    places = min(_FAR_PLACES if corpus.is_far else _PLACES, count, corpus.rows)
    groups: list[np.ndarray] = []
    looked = passed = 0
    for place in range(places):
        start, after = place * corpus.rows // places, (place + 1) * corpus.rows // places
        stop = min(after, start + max(_LOOKED_ROWS, -(-count // places)))
        numbers = np.concatenate([np.empty(0, np.int64), *corpus.selected(start, stop)])
        looked, passed = looked + stop - start, passed + len(numbers)
        if len(numbers):
            groups.append(numbers[: -(-count // places)])
    return groups, passed / max(looked, 1)


def _records(corpus: Corpus, group: np.ndarray) -> Iterator[Record]:
    """The rows of a group."""
    start, stop = int(group[0]), int(group[-1]) + 1
    return corpus.records(corpus.columns, with_images=True, start=start, stop=stop)


def _peak_bytes() -> int:
    """The most memory that this process has had since its peak began anew."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _spread(means: list[float]) -> float | None:
    """Half of the 95 % interval of the mean over groups, as a share of it; None of few groups."""
    if len(means) < 8 or not sum(means):
        return None
    return float(1.96 * np.std(means, ddof=1) / math.sqrt(len(means)) / np.mean(means))


def lines_of(found: Estimate, options: BuildOptions) -> list[str]:
    """What a person is told, before anything is built."""
    run, sizes, store = options.run, found.written, options.writer.store
    tasks = -(-found.rows // options.writer.shard_samples)
    shares = run.task_count or 1
    workers, work_s = usable_workers(run.workers), found.cpu_s * found.share
    at_once = min(shares * workers, tasks)
    # A part that holds a sample of an earlier one is written again while it still lies there; on
    # an object store's own machines, parts lie until they are sent.
    one_part = sum(min(options.writer.shard_bytes, size / tasks) for size in sizes.values())
    made = one_part * (at_once if store is None else workers)
    indices = found.index_bytes * found.samples * len(sizes)
    needed = made + (2 * indices if store is not None else sum(sizes.values()) + indices)
    reasons = ", ".join(
        f"{name} {count / found.sampled:.1%}" for name, count in found.rejected.most_common(3)
    )
    spread = "" if found.spread is None else f" ± {found.spread:.0%}"
    about = "" if found.is_exact else "about "
    disk = "disk" if store is None else "disk a machine (--work)"
    tiers = ", ".join(f"{name} {short_bytes(size)}" for name, size in sizes.items())
    told = [
        (
            "estimate",
            f"by {found.sampled:,} rows at equal distances, of {about}{found.rows:,}; pictures of "
            f"{short_bytes(found.picture_bytes * found.share)} are read",
        ),
        (
            "samples",
            f"about {found.samples:,}; {found.rejected.total() / found.sampled:.1%} rejected"
            + (f" ({reasons})" if reasons else "")
            + ", without pictures that come again elsewhere",
        ),
        ("written", f"{tiers}{spread}; {short_bytes(needed)} of {disk} while it is built"),
        (
            "time",
            f"{duration(work_s)} of one core by the sample's on this machine, without reading and "
            f"the tokenizer's training; {duration(work_s / at_once)} where {at_once:,} work at "
            f"once ({plural(shares, 'share')}, {plural(workers, 'worker')} each, "
            f"{plural(tasks, 'task')})",
        ),
        (
            "memory",
            f"{short_bytes(found.peak_bytes)} a worker by the sample's pictures; 1.3 GB where one "
            "is of 64 million pixels",
        ),
    ]
    lines = [f"{label:<12}{value}" for label, value in told]
    free = _free_bytes(options.writer.folder)
    if needed > free:
        lines.append(
            f"warning: {options.writer.folder} has {short_bytes(free)} free of "
            f"{short_bytes(needed)}: make room, or choose another folder or fewer --tiers"
        )
    return lines


def _free_bytes(folder: Path) -> int:
    """Room where a folder is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free
