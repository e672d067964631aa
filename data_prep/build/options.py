"""The options of a build, composed of its parts'."""

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.build.writer import WriterOptions
from data_prep.pictures.limits import PictureLimits, PictureOptions, Tier, parse_tiers
from data_prep.pool import RunOptions
from data_prep.sources import SourceOptions
from data_prep.text.captions import CaptionOptions
from data_prep.text.vocabulary import VocabularyOptions
from data_prep.text.word_classes import TaggerName


@dataclass(frozen=True, kw_only=True)
class TaggingOptions:
    """How tokens get their word classes"""

    tagger: TaggerName = "textblob"
    """Part-of-speech tagger for syntax masking: textblob (English, offline), spacy (English,
    slower, an installation of its own), vocabulary (each token by itself, looked up in a table:
    CLIPA's way, the fastest), or none (every token is `other`)."""


@dataclass(frozen=True, kw_only=True)
class InPlaceOptions:
    """How the tars are found again"""

    relative_root: bool = False
    """Name the tars' folder relative to `out` in pictures_root.txt, so that both can move together;
    otherwise its absolute path."""


@dataclass(frozen=True, kw_only=True)
class BuildRunOptions(RunOptions):
    """Where the work is done, and which part of it; the result does not depend on it"""

    plan_only: bool = False
    """End when the work is planned: the corpus looked through, the tokenizer trained, the tasks
    known. Shares that start before that wait for it."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything that decides the bytes of a dataset, each part owned by its module.

    `run` alone decides nothing of them: how many processes there are, and which share they do.
    """

    source: SourceOptions
    captions: CaptionOptions
    pictures: PictureLimits
    """PictureOptions, unless they stay in their tars."""
    vocabulary: VocabularyOptions
    tagging: TaggingOptions
    writer: WriterOptions
    run: BuildRunOptions = field(default_factory=BuildRunOptions)
    in_place: InPlaceOptions | None = None
    """Given where pictures stay in their tars."""

    def __post_init__(self) -> None:
        out, source = self.writer.folder, Path(self.source.source)
        if source.is_dir() and out.resolve() == source.resolve():
            raise ValueError(
                f"out={out} is the source's own folder, so that the next build would read the "
                "dataset as a part of its source; choose an --out beside it"
            )

    @property
    def stored_tiers(self) -> list[Tier]:
        """The sizes in which pictures are stored; none where they stay in place."""
        pictures = self.pictures
        return parse_tiers(pictures.tiers) if isinstance(pictures, PictureOptions) else []
