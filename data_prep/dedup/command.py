"""Weights that leave out near duplicates, evaluation pictures and captions said too often."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.dataset_tasks import FarOptions, RowReader
from data_prep.dedup import NOBODY
from data_prep.dedup.hashes import dataset_views, views_file
from data_prep.dedup.neighbours import find
from data_prep.dedup.page import Sets, write_page
from data_prep.dedup.repeats import caption_digests, over_cap
from data_prep.pool import RunOptions, is_share
from data_prep.similarity.left_out import Fact, check_page
from pretrain.base.checks import check_between, check_positive
from pretrain.dataset.manifest import Manifest, read_manifest, weights_file
from pretrain.dataset.rows import base_weights
from pretrain.dataset.sample_weights import write_weights


@dataclass(frozen=True, kw_only=True)
class DedupOptions:
    """Which samples get the weight 0"""

    out: str
    """Name of the weights: DIR/weights/NAME.npy, which training reads by data.weights=NAME."""
    difference: float = 18.0
    """Pictures that differ nowhere by more than so many levels of 255, once one is laid over the
    other, are near duplicates: of a group of them the first is kept."""
    against: list[Path] = field(default_factory=list)
    """Evaluation set: a dataset directory whose pictures, and those near them, are left out.
    Repeat it for several."""
    caption_cap: int | None = None
    """Of samples with the same caption only so many, the first, are kept. Null: all."""
    caption_name: str | None = None
    """Caption that is compared, case and white space aside. Null: the first."""
    weights: str | None = None
    """Name of weights that these are multiplied by. Null: each sample weighs 1."""
    page: Path | None = None
    """HTML file that shows some of the groups and evaluation pictures. Null: none."""
    seed: int = 0
    """Of the page's random selection."""

    def __post_init__(self) -> None:
        check_between({"--difference": self.difference}, 0, 256)
        check_positive({"--caption-cap": self.caption_cap})
        check_page(self.page)


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """How many samples each reason leaves out; one sample can have several."""

    base: int  # of weight 0 before
    repeats: int
    groups: int
    largest: int
    contaminated: list[int]  # by evaluation set
    over_cap: int | None
    flat: int
    kept: int


def dedup(directory: Path, options: DedupOptions, run: RunOptions, far: FarOptions) -> str:
    """Write the weights; returns a table of what they leave out.

    ValueError or OSError name what to change. Every picture is read the first time,
    later the hashes.
    """
    path = weights_file(directory, options.out, "--out")
    manifest = read_manifest(directory)
    caption = _chosen_caption(manifest, options.caption_name)
    weights = base_weights(directory, options.weights, manifest)
    sets = [(one, read_manifest(one)) for one in _check_sets(directory, options.against)]
    reader = RowReader(directory=directory, manifest=manifest, shards=far.shards)
    readers = [reader, *(RowReader(directory=one, manifest=told) for one, told in sets)]
    made = [dataset_views(one, run) for one in readers]
    if is_share(run):
        return "\n".join(one for one in made if isinstance(one, str)) or (
            f"{directory} is hashed: the command without --task-index writes the weights"
        )
    before = weights > 0
    files = [views_file(one) for one in (directory, *options.against)]
    found = find(files, before, options.difference, run)
    contaminated = [near != NOBODY for near in found.nearest]
    repeats = found.keeper != NOBODY
    kept = before & ~repeats
    for flags in contaminated:
        kept &= ~flags
    over: int | None = None
    if options.caption_cap is not None:
        digests = caption_digests(reader, caption, run)
        too_many = over_cap(digests, kept, options.caption_cap)
        over = int(np.count_nonzero(too_many))
        kept &= ~too_many
    if not kept.any():
        raise ValueError(
            f"none of the {manifest.samples:,} samples of {directory} would be left: check "
            f"--difference={options.difference}, --against and --weights"
        )
    write_weights(directory, options.out, manifest, np.where(kept, weights, 0))
    counts = _Counts(
        base=int(np.count_nonzero(~before)),
        repeats=int(np.count_nonzero(repeats)),
        groups=found.groups,
        largest=found.largest,
        contaminated=[int(np.count_nonzero(flags)) for flags in contaminated],
        over_cap=over,
        flat=found.flat,
        kept=int(np.count_nonzero(kept)),
    )
    facts = _facts(path, manifest.samples, options, counts)
    wide = max(24, 2 + max(len(fact.what) for fact in facts))
    told = "\n".join(f"{fact.what:<{wide}}{fact.value}" for fact in facts)
    if options.page is not None:
        corpora = Sets(
            directory=directory,
            manifest=manifest,
            caption=caption,
            shards=far.shards,
            views=[views for views in made if not isinstance(views, str)],
            others=sets,
        )
        write_page(options.page, corpora, found, kept, facts, options.seed)
        told += f"\n{options.page}: what is left out, to look at"
    return told


def _chosen_caption(manifest: Manifest, name: str | None) -> str:
    """The caption to compare; ValueError where the dataset has none of that name."""
    if name is not None and name not in manifest.captions:
        raise ValueError(
            f"--caption-name={name}: the dataset has no such caption; choose one of "
            f"{manifest.captions}"
        )
    return name or manifest.captions[0]


def _check_sets(directory: Path, against: Sequence[Path]) -> Sequence[Path]:
    """ValueError where an evaluation set is the dataset itself."""
    for one in against:
        if one.resolve() == directory.resolve():
            raise ValueError(
                f"--against={one} is the dataset itself, so that nothing would be left: name an "
                "evaluation set"
            )
    return against


def _facts(path: Path, samples: int, options: DedupOptions, counts: _Counts) -> list[Fact]:
    """What was written, and what each reason leaves out of it."""
    use = f"Train by them with --data.weights {options.out}."
    facts = [Fact("weights", str(path), use), Fact("samples", f"{samples:,}")]
    if options.weights is not None:
        facts.append(Fact(f"weight 0 in {options.weights}", f"{counts.base:,}"))
    near = f"{counts.repeats:,} in {counts.groups:,} groups, the largest of {counts.largest:,}"
    how = f"They differ nowhere by more than {options.difference:g} levels. The first is kept."
    facts.append(Fact("near duplicates", near, how))
    for one, count in zip(options.against, counts.contaminated, strict=True):
        why = "Near a picture of that evaluation set."
        facts.append(Fact(f"contaminated by {one}", f"{count:,}", why))
    if counts.over_cap is not None:
        cap = f"Their caption comes more than {options.caption_cap} times; the first are kept."
        facts.append(Fact("over the caption cap", f"{counts.over_cap:,}", cap))
    flat = "Nearly one colour: too little to compare by, so they count as near nothing."
    facts.append(Fact("flat, not compared", f"{counts.flat:,}", flat))
    facts.append(Fact("kept", f"{counts.kept:,} ({counts.kept / samples:.1%})"))
    return facts
