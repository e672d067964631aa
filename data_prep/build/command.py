"""`build`, `index` and `merge`: what they say of a dataset that is made."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from data_prep.build import merge as joining
from data_prep.build.estimate import EstimateOptions, plan_of
from data_prep.build.options import (
    BuildOptions,
    BuildRunOptions,
    InPlaceOptions,
    TaggingOptions,
)
from data_prep.build.pipeline import build_dataset, build_share, plan_build
from data_prep.build.tasks import CAPTIONS_LEFT_OUT, DOWNLOADS
from data_prep.build.writer import WriterOptions
from data_prep.pictures.limits import PictureLimits, PictureOptions
from data_prep.pool import PoolOptions
from data_prep.sources import RowOptions, SourceOptions
from data_prep.sources.links import describe_counts
from data_prep.text.captions import CaptionOptions
from data_prep.text.vocabulary import VocabularyOptions
from pretrain.dataset.manifest import Manifest

_MANY = 0.2  # share of the rows
# What decides a reason, by how it begins.
_LOOK_AT = {
    "caption_too_long": "--caption-max-chars",
    "caption_not_utf8": "the encoding of --source",
    "caption_empty": "--caption",
    "caption": "--drop-placeholders and --caption",
    "duplicate": "--source, which has the same pictures and captions again",
    "image_too_small": "--min-image-px",
    "image_aspect": "--max-aspect",
    "image_missing": "--image-column and --image-root",
    "image_outside": "--image-root",
    "": "the files of --source",
}


def build(
    source: SourceOptions,
    writer: WriterOptions,
    captions: CaptionOptions,
    pictures: PictureOptions,
    vocabulary: VocabularyOptions,
    tagging: TaggingOptions,
    run: BuildRunOptions,
) -> str:
    """Build a dataset, or a share of it, and say what is in it."""
    return _build(_asked(source, writer, captions, pictures, vocabulary, tagging, run))


def plan(
    source: SourceOptions,
    writer: WriterOptions,
    captions: CaptionOptions,
    pictures: PictureOptions,
    vocabulary: VocabularyOptions,
    tagging: TaggingOptions,
    run: BuildRunOptions,
    sampling: EstimateOptions,
) -> str:
    """Say what that build would take."""
    asked = _asked(source, writer, captions, pictures, vocabulary, tagging, run)
    return plan_of(asked, sampling)


def _asked(
    source: SourceOptions,
    writer: WriterOptions,
    captions: CaptionOptions,
    pictures: PictureLimits,
    vocabulary: VocabularyOptions,
    tagging: TaggingOptions,
    run: BuildRunOptions,
) -> BuildOptions:
    return BuildOptions(
        source=source,
        captions=captions,
        pictures=pictures,
        vocabulary=vocabulary,
        tagging=tagging,
        writer=writer,
        run=run,
    )


def index(
    tars: str,
    rows: RowOptions,
    writer: WriterOptions,
    captions: CaptionOptions,
    pictures: PictureLimits,
    vocabulary: VocabularyOptions,
    tagging: TaggingOptions,
    in_place: InPlaceOptions,
    run: BuildRunOptions,
) -> str:
    """Index tars in place and say what is in them."""
    source = SourceOptions(source=tars, format="webdataset", **asdict(rows))
    options = _asked(source, writer, captions, pictures, vocabulary, tagging, run)
    return _build(replace(options, in_place=in_place))


def merge(directory: Path, pool: PoolOptions) -> str:
    """Join the shares of a build and say what is in it."""
    return _summarise(directory, *joining.merge(directory, pool))


def _build(options: BuildOptions) -> str:
    if options.run.plan_only:
        return plan_build(options)
    if options.run.task_index is not None:
        return build_share(options)
    told = _summarise(options.writer.out, *build_dataset(options))
    if options.writer.store is not None:
        told += (
            f"\ntrain with --data.train {options.writer.folder} --data.shards.url "
            f"{options.writer.out} --data.shards.cache FOLDER_ON_THE_NODES_OWN_DISK"
        )
    return told


def _summarise(out: Path | str, manifest: Manifest, tokens: np.ndarray) -> str:
    """A short table of what was written and what was left out."""
    lines = [("dataset", str(out)), ("samples", f"{manifest.samples:,}")]
    for name, tier in manifest.tiers.items():
        where = ", pictures in place" if tier.in_place else ""
        told = f"{len(tier.shards)} shards, {tier.bytes / 1e6:,.1f} MB{where}"
        lines.append((f"tier {name}", told))
    lines.append(("vocabulary", f"{manifest.tokenizer.vocab_size:,} pieces"))
    for column, name in enumerate(manifest.captions):
        counts = tokens[:, column]
        having, total = np.count_nonzero(counts), counts.sum(dtype=np.int64)
        mean = f"{total / having:.1f} tokens on average" if having else "no tokens"
        lines.append((f"caption {name}", f"{having:,} samples, {mean}"))
    if left_out := manifest.provenance.get(CAPTIONS_LEFT_OUT):
        lines.append(("captions left out", f"{left_out:,}, beyond --captions-per-list"))
    if downloads := manifest.provenance.get(DOWNLOADS):
        lines += describe_counts(downloads)
    lines.append(("rejected", f"{sum(manifest.rejected.values()):,}"))
    lines += [(f"  {reason}", f"{count:,}") for reason, count in manifest.rejected.items() if count]
    shown = [f"{label:<24}{value}" for label, value in lines]
    return "\n".join([*shown, *_warning(manifest)])


def _warning(manifest: Manifest) -> list[str]:
    """A line where so many rows are left out that an option is more likely wrong than the rows."""
    rejected = sum(manifest.rejected.values())
    share = rejected / ((manifest.samples + rejected) or 1)
    if share <= _MANY:
        return []
    reason, count = max(manifest.rejected.items(), key=lambda item: item[1])
    option = next(option for begin, option in _LOOK_AT.items() if reason.startswith(begin))
    told = f"{share:.0%} of the rows are rejected, {count:,} as {reason}: look at {option}"
    return [f"warning: {told}"]
