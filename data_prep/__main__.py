"""Command line: `python -m data_prep build --source FILE --out DIR …`."""

from collections.abc import Sequence

from pretrain.cli import Command, Positional, end, run_one_of

_PROGRAM = "python -m data_prep"
_DATASET = Positional(name="directory", help="Dataset directory.")
_CAPTIONS = "data_prep.text.captions:CaptionOptions"
_POOL = "data_prep.pool:PoolOptions"
_RUN = "data_prep.pool:RunOptions"
_FAR = "data_prep.dataset_tasks:FarOptions"
_BUILD_RUN = "data_prep.build.options:BuildRunOptions"
_WRITER = "data_prep.build.writer:WriterOptions"
_TEXT = ("data_prep.text.vocabulary:VocabularyOptions", "data_prep.build.options:TaggingOptions")
_BUILD = (
    "data_prep.sources:SourceOptions",
    _WRITER,
    _CAPTIONS,
    "data_prep.pictures.limits:PictureOptions",
    *_TEXT,
    _BUILD_RUN,
)


def _command(
    name: str,
    description: str,
    run: str,
    *options: str,
    positionals: tuple[Positional, ...] = (_DATASET,),
    first: tuple[str, ...] = (),
) -> tuple[str, Command]:
    command = Command(
        program=f"{_PROGRAM} {name}",
        description=description,
        run=f"data_prep.{run}",
        options=options,
        positionals=positionals,
        first=first,
    )
    return name, command


# In the order in which people come to them.
COMMANDS = dict(
    (
        _command(
            "download",
            "Fetch the pictures of a table of links and captions by img2dataset, for `build`.",
            "download.command:download",
            "data_prep.download.command:DownloadOptions",
            positionals=(
                Positional(name="table", help="File, folder or glob of links.", kind=str),
                Positional(name="out", help="Folder of the pictures."),
            ),
        ),
        _command(
            "plan",
            "Say what a build takes, from a sample: the build's command, with plan in its place.",
            "build.command:plan",
            *_BUILD,
            "data_prep.build.estimate:EstimateOptions",
            positionals=(),
        ),
        _command(
            "build",
            "Turn an image-text corpus into a dataset directory.",
            "build.command:build",
            *_BUILD,
            positionals=(),
        ),
        _command(
            "index",
            "Make a dataset directory of WebDataset tars whose pictures stay in them.",
            "build.command:index",
            "data_prep.sources:RowOptions",
            _WRITER,
            _CAPTIONS,
            "data_prep.pictures.limits:PictureLimits",
            *_TEXT,
            "data_prep.build.options:InPlaceOptions",
            _BUILD_RUN,
            positionals=(Positional(name="tars", help="Folder, file or glob of tars.", kind=str),),
        ),
        _command(
            "merge",
            "Join the shares of a build (--task-index) to one dataset directory, in place.",
            "build.command:merge",
            _POOL,
        ),
        _command(
            "verify",
            "Read a dataset directory in full and name what is not as its manifest says.",
            "verify:verify",
            _RUN,
            _FAR,
        ),
        _command(
            "inspect",
            "Write an HTML page that shows a dataset directory: samples, histograms, reductions.",
            "inspection.command:inspect",
            "data_prep.inspection.command:InspectOptions",
            _POOL,
            _FAR,
        ),
        _command(
            "stats",
            "Count what is in a dataset directory: sizes, caption lengths, vocabulary, rejections.",
            "stats:stats",
            "data_prep.stats:StatsOptions",
            _RUN,
            _FAR,
        ),
        _command(
            "join",
            "Make one dataset of several, without copying a picture, and mix them by share.",
            "join:join",
            "data_prep.join:JoinOptions",
        ),
        _command(
            "fetch",
            "Bring a dataset's small files from afar, to train on shards that stay there.",
            "fetch:fetch",
            "data_prep.fetch:FetchOptions",
        ),
        _command(
            "publish",
            "Send a dataset, or what was added to it, to an object store.",
            "publish:publish",
            "data_prep.publish:PublishOptions",
        ),
        _command(
            "weigh",
            "Weigh the samples of a dataset directory by a metadata column, or by like pictures.",
            "weigh:weigh",
            "data_prep.weigh:WeighOptions",
            _RUN,
            _FAR,
        ),
        _command(
            "dedup",
            "Weigh near duplicates, evaluation pictures and repeated captions with 0.",
            "dedup.command:dedup",
            "data_prep.dedup.command:DedupOptions",
            _RUN,
            _FAR,
        ),
        _command(
            "recaption",
            "Add captions of a second table to a finished dataset directory, beside its shards.",
            "recaption.command:recaption",
            "data_prep.recaption.command:RecaptionOptions",
            _CAPTIONS,
            _POOL,
            _FAR,
        ),
        _command(
            "embed",
            "Embed the pictures and texts of a dataset directory by an exported model.",
            "similarity.embed:embed",
            "data_prep.similarity.embed:EmbedOptions",
            _FAR,
            positionals=(
                Positional(name="model", help="Exported model, or a run folder's."),
                _DATASET,
            ),
        ),
        _command(
            "filter",
            "Weigh out samples whose picture and text a model finds least alike.",
            "similarity.command:filter_by_similarity",
            "data_prep.similarity.command:FilterOptions",
            _FAR,
        ),
        _command(
            "export",
            "Write a dataset directory's samples as plain WebDataset shards, for other trainers.",
            "export:export",
            "data_prep.export:ExportOptions",
            _FAR,
            positionals=(_DATASET, Positional(name="out", help="Folder of the shards.")),
        ),
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a dataset is not right, 2 the request cannot be met (one line says
    why), 130 interrupted."""
    return run_one_of(COMMANDS, _PROGRAM, arguments)


if __name__ == "__main__":
    end(main())
