"""The options of a build, composed of its parts'."""

from dataclasses import dataclass, field

from data_prep.captions import CaptionOptions
from data_prep.pictures import PictureOptions
from data_prep.pool import RunOptions
from data_prep.sources import SourceOptions
from data_prep.vocabulary import VocabularyOptions
from data_prep.word_classes import TaggerName
from data_prep.writer import WriterOptions


@dataclass(frozen=True, kw_only=True)
class TaggingOptions:
    """How tokens get their word classes"""

    tagger: TaggerName = "textblob"
    """Part-of-speech tagger for syntax masking: textblob (English, offline), spacy (English,
    slower, an installation of its own), vocabulary (each token by itself, looked up in a table:
    CLIPA's way, the fastest), or none (every token is `other`)."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything that decides the bytes of a dataset, each part owned by its module.

    `run` alone decides nothing of them: how many processes there are, and which share they do.
    """

    source: SourceOptions
    captions: CaptionOptions
    pictures: PictureOptions
    vocabulary: VocabularyOptions
    tagging: TaggingOptions
    writer: WriterOptions
    run: RunOptions = field(default_factory=RunOptions)
