"""Records to finished samples: captions, tokens, word classes and pictures of all tiers."""

import hashlib
import math
import zlib
from typing import Any

import numpy as np

from data_prep.build.options import BuildOptions
from data_prep.build.writer import NewSample, Place
from data_prep.pictures.limits import measure_in_place
from data_prep.pictures.tiers import store
from data_prep.rejection import RejectedError
from data_prep.sources import Record
from data_prep.text.captions import CaptionTemplate, make_captions
from data_prep.text.word_classes import TokenTagger
from pretrain.dataset.manifest import KEY_CHARS, token_dtype
from pretrain.tokens.tokenizer import Tokenizer

TOKENS_CAP = (1 << 16) - 1  # the index counts a caption's tokens in 16 bits


class SampleMaker:
    """Records to finished samples."""

    def __init__(
        self, options: BuildOptions, templates: list[CaptionTemplate], tokenizer: Tokenizer
    ) -> None:
        self.options = options
        self.templates = templates
        self.tokenizer = tokenizer
        self.encode = TokenTagger(options.tagging.tagger, tokenizer).encode
        self.dtype = token_dtype(tokenizer.vocabulary.size)

    def make(self, record: Record, seen: set[str]) -> NewSample:
        """The record's sample. RejectedError names why there is none, e.g. a key seen before."""
        if record.refused == "metadata_unreadable":  # the caption may have stood in it
            raise RejectedError(record.refused)
        captions = make_captions(
            self.templates, record.columns, self.options.captions.caption_max_chars
        )
        encoded = {name: self.encode(text) for name, text in captions.items()}
        # Text of characters that the tokenizer drops (zero-width ones) leaves no token.
        encoded = {name: pair for name, pair in encoded.items() if pair[0]}
        captions = {name: captions[name] for name in encoded}
        if not captions:
            raise RejectedError("caption_empty")
        if any(len(ids) > TOKENS_CAP for ids, _ in encoded.values()):
            raise RejectedError("caption_too_long")
        text = next(iter(captions.values()))
        key = _sample_key(record.image or b"", text)
        if key in seen:
            raise RejectedError("duplicate_key")
        if record.refused is not None:
            raise RejectedError(record.refused)
        limits, stored = self.options.pictures, None
        pictures: dict[str, bytes] = {}
        if self.options.in_place:
            width, height = measure_in_place(record.image, limits)
            stored = _place_of(record)
        else:
            made = store(record.image, limits, self.options.stored_tiers)
            width, height, pictures = made.width, made.height, made.files
        seen.add(key)
        return NewSample(
            key=key,
            pictures=pictures,
            stored=stored,
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
                "meta": {name: _plain_value(value) for name, value in record.columns.items()},
                "width": width,
                "height": height,
            },
        )


def _place_of(record: Record) -> Place:
    """Where the picture lies in its tar, as an index row has it."""
    assert record.stored is not None and record.image is not None  # a tar's, and it was decoded
    return record.stored.offset, record.stored.size, zlib.crc32(record.image)


def _sample_key(image: bytes, text: str) -> str:
    """First 64 bits of the sha256 over picture and first caption, in hex."""
    return hashlib.sha256(image + b"\0" + text.encode()).hexdigest()[:KEY_CHARS]


def _plain_value(value: Any) -> Any:
    """A column's value as JSON can hold it: dates as text, undecodable bytes and NaN as null."""
    if isinstance(value, dict):
        return {str(name): _plain_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
