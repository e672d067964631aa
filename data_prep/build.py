"""From a corpus to a dataset directory: the order of things, and nothing else."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features
from tqdm import tqdm

from data_prep.captions import CaptionOptions, CaptionTemplate, make_captions, parse_templates
from data_prep.pictures import PictureOptions, decode_picture, encode_tier, parse_tiers
from data_prep.rejection import REASONS, RejectedError
from data_prep.sources import Corpus, Record, SourceOptions
from data_prep.sources.column_choice import DEFAULT_CAPTION_COLUMN
from data_prep.vocabulary import VocabularyOptions, sample_texts, train_tokenizer
from data_prep.word_classes import TAGGERS, TaggerName
from data_prep.writer import (
    DatasetWriter,
    Sample,
    WriterOptions,
    refuse_finished,
    write_manifest,
)
from pretrain.files import write_durably
from pretrain.shard_format import KEY_CHARS, Manifest, TokenizerInfo, token_dtype
from pretrain.tokens.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

TOKENIZER_FILE = "tokenizer.model"
TOKENS_CAP = (1 << 16) - 1  # the index counts a caption's tokens in 16 bits
# The libraries whose releases may change a byte of the output.
LIBRARIES = ("ftfy", "pillow", "sentencepiece", "textblob")


@dataclass(frozen=True, kw_only=True)
class TaggingOptions:
    """How tokens get their word classes"""

    tagger: TaggerName = "pattern"
    """Part-of-speech tagger for syntax masking: pattern (TextBlob's, English, offline), or none
    (every token is `other`)."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything that decides the bytes of a dataset, each part owned by its module."""

    source: SourceOptions
    captions: CaptionOptions
    pictures: PictureOptions
    vocabulary: VocabularyOptions
    tagging: TaggingOptions
    writer: WriterOptions


class SampleMaker:
    """Records to finished samples; a pure function but for the keys it has seen."""

    def __init__(
        self, options: BuildOptions, templates: list[CaptionTemplate], tokenizer: Tokenizer
    ) -> None:
        self.options = options
        self.templates = templates
        self.tokenizer = tokenizer
        self.tiers = parse_tiers(options.pictures.tiers)
        self.encode = TAGGERS[options.tagging.tagger]
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.keys: set[str] = set()

    def make(self, record: Record) -> Sample:
        """The record's sample. RejectedError names why there is none."""
        captions = make_captions(
            self.templates, record.columns, self.options.captions.caption_max_chars
        )
        encoded = {name: self.encode(self.tokenizer, text) for name, text in captions.items()}
        # Text of characters that the tokenizer drops (zero-width ones) leaves no token.
        encoded = {name: pair for name, pair in encoded.items() if pair[0]}
        captions = {name: captions[name] for name in encoded}
        if not captions:
            raise RejectedError("caption_empty")
        if any(len(ids) > TOKENS_CAP for ids, _ in encoded.values()):
            raise RejectedError("caption_too_long")
        text = next(iter(captions.values()))
        key = sample_key(record.image or b"", text)
        if key in self.keys:
            raise RejectedError("duplicate_key")
        if record.refused is not None:
            raise RejectedError(record.refused)
        picture = decode_picture(record.image, self.options.pictures)
        self.keys.add(key)
        return Sample(
            key=key,
            pictures={tier.name: encode_tier(picture, tier) for tier in self.tiers},
            tokens=[
                len(encoded[template.name][0]) if template.name in encoded else 0
                for template in self.templates
            ],
            ids=b"".join(np.array(ids, dtype=self.dtype).tobytes() for ids, _ in encoded.values()),
            word_classes=b"".join(classes for _, classes in encoded.values()),
            text=text,
            details={
                "captions": captions,
                "tokens": {name: len(ids) for name, (ids, _) in encoded.items()},
                "meta": {name: plain_value(value) for name, value in record.columns.items()},
                "width": picture.width,
                "height": picture.height,
            },
        )


def build_dataset(options: BuildOptions) -> tuple[Manifest, np.ndarray]:
    """Make the dataset directory. Returns its manifest and the tokens (samples, captions).

    ValueError, FileNotFoundError or FileExistsError name the option to change; they come before
    anything is written, except where no sample is left in the end.
    """
    corpus = Corpus(options.source)
    templates = parse_templates(options.captions, corpus.columns, corpus.caption_column)
    refuse_finished(options.writer)
    say_what_was_chosen(corpus, options.captions)
    # Before the writer clears `out`: a given tokenizer may lie there, and a corpus without a
    # caption must not cost the dataset that it was to replace.
    given = options.vocabulary.tokenizer
    model = (
        train_on_corpus(corpus, templates, options)
        if given is None
        else Tokenizer(given).file.read_bytes()
    )
    writer = DatasetWriter(options.writer, parse_tiers(options.pictures.tiers), len(templates))
    write_durably(options.writer.out / TOKENIZER_FILE, model)
    tokenizer = Tokenizer(options.writer.out / TOKENIZER_FILE)

    maker = SampleMaker(options, templates, tokenizer)
    rejected: Counter[str] = Counter({reason: 0 for reason in REASONS})
    rows = 0
    total = corpus.rows if corpus.where is None else None
    with tqdm(total=total, unit=" images", desc="build", disable=None) as progress:
        for record in corpus.records(corpus.columns, with_images=True):
            rows += 1
            try:
                sample = maker.make(record)
            except RejectedError as rejection:
                rejected[rejection.reason] += 1
            except Exception as error:
                # No known reason: it must not pass as a bad sample, nor end without a place.
                raise ValueError(
                    f"{record.place} cannot be made a sample ({type(error).__name__}: {error}); "
                    "leave it out, e.g. with --where"
                ) from error
            else:
                writer.add(sample)
            progress.set_postfix(rejected=rejected.total(), refresh=False)
            progress.update()
    check_result(options, rows=rows, rejected=rejected)
    tiers, tokens = writer.finish()
    manifest = Manifest(
        samples=len(tokens),
        captions=[template.name for template in templates],
        token_dtype=maker.dtype.str,
        tiers=tiers,
        tokenizer=tokenizer_info(tokenizer),
        tagger=options.tagging.tagger,
        rejected=dict(rejected),
        provenance=provenance(options, corpus, templates, rows),
    )
    write_manifest(options.writer.out, manifest)
    return manifest, tokens


def say_what_was_chosen(corpus: Corpus, captions: CaptionOptions) -> None:
    """On stderr, a line each: what was decided for the user, and what is left alone."""
    notes = list(corpus.source.notes)
    if not captions.caption and corpus.caption_column != DEFAULT_CAPTION_COLUMN:
        notes.append(f"captions are read from column {corpus.caption_column!r}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def train_on_corpus(
    corpus: Corpus, templates: list[CaptionTemplate], options: BuildOptions
) -> bytes:
    """A tokenizer trained on the captions of a first pass, which reads no pictures."""
    columns = sorted({column for template in templates for column in template.columns})

    def all_texts() -> Iterator[str]:
        for record in corpus.records(columns, with_images=False):
            try:
                captions = make_captions(
                    templates, record.columns, options.captions.caption_max_chars
                )
            except RejectedError:
                continue  # counted in the pass that writes
            yield from captions.values()

    texts = sample_texts(all_texts(), options.vocabulary.tokenizer_captions)
    if not texts:
        raise ValueError(
            f"no row of {options.source.source} gives a caption: {corpus.rows} rows, "
            f"where={options.source.where!r}, caption={options.captions.caption}; change --where "
            "or --caption"
        )
    return train_tokenizer(texts, options.vocabulary)


def sample_key(image: bytes, text: str) -> str:
    """First 64 bits of the sha256 over picture and first caption, in hex."""
    return hashlib.sha256(image + b"\0" + text.encode()).hexdigest()[:KEY_CHARS]


def plain_value(value: Any) -> Any:
    """A column's value as JSON can hold it: dates as text, undecodable bytes and NaN as null."""
    if isinstance(value, dict):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def check_result(options: BuildOptions, *, rows: int, rejected: Counter[str]) -> None:
    """ValueError if no sample is left, with what was read and why it was left out."""
    if rows == 0:
        raise ValueError(
            f"no row of {options.source.source} passes where={options.source.where!r}; "
            "change --where"
        )
    if rejected.total() == rows:
        reasons = {reason: count for reason, count in rejected.items() if count}
        raise ValueError(
            f"all {rows} rows of {options.source.source} were rejected: {reasons}; check "
            "--image-column, --image-root, --caption and the limits"
        )


def tokenizer_info(tokenizer: Tokenizer) -> TokenizerInfo:
    """The manifest's entry for the tokenizer."""
    return TokenizerInfo(
        file=TOKENIZER_FILE,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
    )


def provenance(
    options: BuildOptions, corpus: Corpus, templates: list[CaptionTemplate], rows: int
) -> dict[str, Any]:
    """Where the dataset comes from: source files, rows, options, libraries. No time, no host.

    Files go by name only, so that the same corpus elsewhere gives the same bytes. Columns and
    captions are those that were chosen, whether or not an option said so.
    """
    writer = asdict(options.writer)
    del writer["out"], writer["overwrite"]
    source = {
        **asdict(options.source),
        "format": corpus.format,
        "image_column": corpus.source.image_column,
    }
    del source["source"], source["image_root"]
    captions = {
        **asdict(options.captions),
        "caption": [f"{template.name}={template.template}" for template in templates],
    }
    vocabulary = {**asdict(options.vocabulary), "tokenizer": None}
    if options.vocabulary.tokenizer is not None:
        vocabulary["tokenizer"] = Path(options.vocabulary.tokenizer).name
    return {
        "files": corpus.source.files(),
        "rows_found": corpus.rows,
        "rows_selected": rows,
        "options": {
            "source": source,
            "captions": captions,
            "pictures": asdict(options.pictures),
            "vocabulary": vocabulary,
            "tagging": asdict(options.tagging),
            "writer": writer,
        },
        "libraries": {
            **{name: version(name) for name in LIBRARIES},
            "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
        },
    }
