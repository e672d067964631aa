"""Command line: `python -m data_prep build --source FILE --out DIR …`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from data_prep.build.merge import merge
from data_prep.build.options import BuildOptions, InPlaceOptions, TaggingOptions
from data_prep.build.pipeline import build_dataset, build_share
from data_prep.build.tasks import CAPTIONS_LEFT_OUT, DOWNLOADS
from data_prep.build.writer import WriterOptions
from data_prep.dedup.command import DedupOptions, dedup
from data_prep.download.command import DownloadOptions, download
from data_prep.fetch import FetchOptions, fetch
from data_prep.inspection.command import InspectOptions, inspect
from data_prep.join import JoinOptions, join
from data_prep.pictures.limits import PictureLimits, PictureOptions
from data_prep.pool import PoolOptions, RunOptions
from data_prep.recaption.command import RecaptionOptions, recaption
from data_prep.similarity.command import FilterOptions, filter_by_similarity
from data_prep.similarity.embed import EmbedOptions, embed
from data_prep.sources import RowOptions, SourceOptions
from data_prep.sources.links import describe_counts
from data_prep.stats import StatsOptions, stats
from data_prep.text.captions import CaptionOptions
from data_prep.text.vocabulary import VocabularyOptions
from data_prep.verify import verify
from data_prep.weigh import WeighOptions, weigh
from pretrain.dataset.manifest import Manifest

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a dataset is not right, 2 the request cannot be met (one line says
    why), 130 interrupted."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="data_prep", description=__doc__)
    subcommands = parser.add_subcommands()
    for name, (description, parts, _) in COMMANDS.items():
        command = ArgumentParser(description=description)
        for part in parts:
            command.add_class_arguments(part)
        if name == "embed":
            command.add_argument(
                "model", metavar="MODEL", type=Path, help="Exported model, or a run folder's."
            )
        if name == "download":
            command.add_argument("table", metavar="TABLE", help="File, folder or glob of links.")
            command.add_argument("out", metavar="OUT", type=Path, help="Folder of the pictures.")
        if name == "index":
            command.add_argument("tars", metavar="DIR", help="Folder, file or glob of tars.")
        if name in ON_A_DATASET:
            command.add_argument("dataset", metavar="DIR", type=Path, help="Dataset directory.")
        subcommands.add_subcommand(name, command, help=description)
    chosen = parser.parse_args(spell_options(sys.argv[1:] if argv is None else argv))
    _, _, run = COMMANDS[chosen.subcommand]
    try:
        return run(chosen[chosen.subcommand])
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; give the same command again to go on", file=sys.stderr)
        return 130


def spell_options(argv: Sequence[str]) -> list[str]:
    """Options as the parser spells them: `--shard-bytes` too, `--caption` repeated, bare flags."""
    spelled: list[str] = []
    for i, word in enumerate(argv):
        if not word.startswith("--"):
            spelled.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_")
        if (argv[0], name) in REPEATED:
            name += "+"
        spelled.append(name + equals + value)
        following = argv[i + 1] if i + 1 < len(argv) else "--"
        if name == "--overwrite" and not equals and following.startswith("--"):
            spelled.append("true")
    return spelled


def options_of(kind: Callable[..., T], chosen: Namespace) -> T:
    """The options of one dataclass out of all that the command line gave."""
    values: dict[str, Any] = {field.name: chosen[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**values)


def run_build(chosen: Namespace) -> int:
    """Build a dataset and say what is in it."""
    source, pictures = options_of(SourceOptions, chosen), options_of(PictureOptions, chosen)
    return build_by(build_options(chosen, source, pictures))


def run_index(chosen: Namespace) -> int:
    """Index tars in place and say what is in them."""
    rows = options_of(RowOptions, chosen)
    source = SourceOptions(source=chosen.tars, format="webdataset", **asdict(rows))
    options = build_options(chosen, source, options_of(PictureLimits, chosen))
    return build_by(replace(options, in_place=options_of(InPlaceOptions, chosen)))


def build_options(
    chosen: Namespace, source: SourceOptions, pictures: PictureLimits
) -> BuildOptions:
    """A build's options, of which those of the source and the pictures are given."""
    return BuildOptions(
        source=source,
        captions=options_of(CaptionOptions, chosen),
        pictures=pictures,
        vocabulary=options_of(VocabularyOptions, chosen),
        tagging=options_of(TaggingOptions, chosen),
        writer=options_of(WriterOptions, chosen),
        run=options_of(RunOptions, chosen),
    )


def build_by(options: BuildOptions) -> int:
    """Build a dataset, or a share of it, and say what is in it."""
    if options.run.task_index is not None:
        print(build_share(options))
    else:
        print(summarise(options.writer.out, *build_dataset(options)))
    return 0


def run_download(chosen: Namespace) -> int:
    """Fetch the pictures of a table of links and say what came."""
    print(download(chosen.table, chosen.out, options_of(DownloadOptions, chosen)))
    return 0


def run_merge(chosen: Namespace) -> int:
    """Join the shares of a build and say what is in it."""
    workers = options_of(PoolOptions, chosen).workers
    print(summarise(chosen.dataset, *merge(chosen.dataset, workers)))
    return 0


def run_verify(chosen: Namespace) -> int:
    """Say what is wrong with a dataset, or that nothing is."""
    faults = 0
    for fault in verify(chosen.dataset, options_of(PoolOptions, chosen).workers):
        print(" ".join(fault.split()))
        faults += 1
    if not faults:
        print(f"{chosen.dataset}: everything is as its manifest says")
    return 1 if faults else 0


def run_weigh(chosen: Namespace) -> int:
    """Write weights of a dataset and say what they change."""
    print(weigh(chosen.dataset, options_of(WeighOptions, chosen)))
    return 0


def run_join(chosen: Namespace) -> int:
    """Make one dataset of several and say what is in it."""
    print(join(chosen.dataset, options_of(JoinOptions, chosen)))
    return 0


def run_fetch(chosen: Namespace) -> int:
    """Bring a dataset's small files and say how to train on it."""
    print(fetch(chosen.dataset, options_of(FetchOptions, chosen)))
    return 0


def run_dedup(chosen: Namespace) -> int:
    """Write weights that leave samples out, and say which."""
    workers = options_of(PoolOptions, chosen).workers
    print(dedup(chosen.dataset, options_of(DedupOptions, chosen), workers))
    return 0


def run_recaption(chosen: Namespace) -> int:
    """Add captions to a finished dataset and say how many samples have them."""
    captions, workers = options_of(CaptionOptions, chosen), options_of(PoolOptions, chosen).workers
    print(recaption(chosen.dataset, options_of(RecaptionOptions, chosen), captions, workers))
    return 0


def run_embed(chosen: Namespace) -> int:
    """Write embeddings of a dataset."""
    print(embed(chosen.model, chosen.dataset, options_of(EmbedOptions, chosen)))
    return 0


def run_filter(chosen: Namespace) -> int:
    """Write weights that leave samples out, and say which."""
    print(filter_by_similarity(chosen.dataset, options_of(FilterOptions, chosen)))
    return 0


def run_inspect(chosen: Namespace) -> int:
    """Write a page that shows a dataset."""
    print(inspect(chosen.dataset, options_of(InspectOptions, chosen)))
    return 0


def run_stats(chosen: Namespace) -> int:
    """Say what is in a dataset."""
    print(stats(chosen.dataset, options_of(StatsOptions, chosen)))
    return 0


def summarise(out: Path, manifest: Manifest, tokens: np.ndarray) -> str:
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
    return "\n".join(f"{label:<24}{value}" for label, value in lines)


# name -> (description, option dataclasses, what runs)
COMMANDS: dict[str, tuple[str, tuple[type, ...], Callable[[Namespace], int]]] = {
    "build": (
        "Turn an image-text corpus into a dataset directory.",
        (
            SourceOptions,
            WriterOptions,
            CaptionOptions,
            PictureOptions,
            VocabularyOptions,
            TaggingOptions,
            RunOptions,
        ),
        run_build,
    ),
    "index": (
        "Make a dataset directory of WebDataset tars whose pictures stay in them.",
        (
            RowOptions,
            WriterOptions,
            CaptionOptions,
            PictureLimits,
            VocabularyOptions,
            TaggingOptions,
            InPlaceOptions,
            RunOptions,
        ),
        run_index,
    ),
    "download": (
        "Fetch the pictures of a table of links and captions by img2dataset, for `build`.",
        (DownloadOptions,),
        run_download,
    ),
    "merge": (
        "Join the shares of a build (--task-index) to one dataset directory, in place.",
        (PoolOptions,),
        run_merge,
    ),
    "verify": (
        "Read a dataset directory in full and name what is not as its manifest says.",
        (PoolOptions,),
        run_verify,
    ),
    "inspect": (
        "Write an HTML page that shows a dataset directory: samples, histograms, reductions.",
        (InspectOptions,),
        run_inspect,
    ),
    "stats": (
        "Count what is in a dataset directory: sizes, caption lengths, vocabulary, rejections.",
        (StatsOptions,),
        run_stats,
    ),
    "join": (
        "Make one dataset of several, without copying a picture, and mix them by share.",
        (JoinOptions,),
        run_join,
    ),
    "fetch": (
        "Bring a dataset's small files from afar, to train on shards that stay there.",
        (FetchOptions,),
        run_fetch,
    ),
    "weigh": (
        "Weigh the samples of a dataset directory by a metadata column, or by like pictures.",
        (WeighOptions,),
        run_weigh,
    ),
    "dedup": (
        "Weigh near duplicates, evaluation pictures and repeated captions with 0.",
        (DedupOptions, PoolOptions),
        run_dedup,
    ),
    "recaption": (
        "Add named captions of a second table to a finished dataset directory, beside its shards.",
        (RecaptionOptions, CaptionOptions, PoolOptions),
        run_recaption,
    ),
    "embed": (
        "Embed the pictures and texts of a dataset directory by an exported model.",
        (EmbedOptions,),
        run_embed,
    ),
    "filter": (
        "Weigh out samples whose picture and text a model finds least alike, and near duplicates.",
        (FilterOptions,),
        run_filter,
    ),
}
# Options that a command line may give several times.
REPEATED = {
    ("build", "--caption"),
    ("index", "--caption"),
    ("recaption", "--caption"),
    ("dedup", "--against"),
}
REPEATED |= {("join", "--source"), ("join", "--share")}
ON_A_DATASET = COMMANDS.keys() - {"build", "index", "download"}  # name a dataset directory first

if __name__ == "__main__":
    sys.exit(main())
