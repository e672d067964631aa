"""The contact sheet: some samples with their pictures, and their captions token by token."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.inspection.kept import IMAGE_PX
from pretrain.dataset.manifest import Manifest, tier_for
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.dataset.rows import space_rows
from pretrain.dataset.shards import ShardOptions
from pretrain.tokens.tokenizer import open_tokenizer
from pretrain.tokens.word_classes import SENTENCE_START

_SHEET_PX = 240  # longest side of a picture on the contact sheet
_CLASS_NAMES = {1: "noun", 2: "adjective", 3: "verb"}
_OTHER = "other"
NO_TEXT = "␣"  # a token that is white space only


@dataclass(frozen=True, kw_only=True)
class _Token:
    """One token as the page shows it."""

    text: str
    word_class: str
    begins_word: bool
    begins_sentence: bool  # another than the caption's first


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption of a sample."""

    name: str
    text: str
    ids: NDArray[np.int64]
    classes: NDArray[np.int64]  # class bytes
    tokens: list[_Token]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One sample of the contact sheet."""

    key: str
    size: str
    picture: str | None  # JPEG as base64; None where it cannot be decoded
    jpeg: bytes
    captions: list[Caption]


def read_shots(
    directory: Path, manifest: Manifest, wanted: int, shards: ShardOptions
) -> list[Shot]:
    """Samples at equal distances."""
    reader = Dataset(directory, tier_for(manifest, IMAGE_PX), shards=shards, looks=False)
    pieces = pieces_of(directory, manifest)
    are_spaced = any(piece[:1] == " " for piece in pieces)
    shots: list[Shot] = []
    for rows in space_rows(manifest.samples, wanted):
        members = reader.members(rows, ("jpg", "ids", "pos", "json"))
        for row, (jpeg, ids, classes, details) in zip(rows.tolist(), members, strict=True):
            told = json.loads(details)
            numbers = np.frombuffer(ids, manifest.token_dtype).astype(np.int64)
            kinds = np.frombuffer(classes, np.uint8).astype(np.int64)
            captions: list[Caption] = []
            start = 0
            for name, count in zip(
                manifest.captions, reader.index["tokens"][row].tolist(), strict=True
            ):
                mine = slice(start, start + count)
                start += count
                if count:
                    captions.append(
                        Caption(
                            name=name,
                            text=told["captions"].get(name, ""),
                            ids=numbers[mine],
                            classes=kinds[mine],
                            tokens=_tokens_of(numbers[mine], kinds[mine], pieces, are_spaced),
                        )
                    )
            key = reader.index["key"][row].decode()
            size = f"{told['width']} × {told['height']}"
            shot = Shot(
                key=key, size=size, picture=shrink_to_data_url(jpeg), jpeg=jpeg, captions=captions
            )
            shots.append(shot)
    return shots


def _tokens_of(
    ids: NDArray[np.int64], classes: NDArray[np.int64], pieces: list[str], are_spaced: bool
) -> list[_Token]:
    """are_spaced: whether pieces hold the white space before a word, or else all stand apart."""
    return [
        _Token(
            text=show_token(pieces, token),
            word_class=_CLASS_NAMES.get(kind & ~SENTENCE_START, _OTHER),
            begins_word=not are_spaced or pieces[token : token + 1] in ([], [" "])
            or pieces[token][:1] == " ",
            begins_sentence=place > 0 and bool(kind & SENTENCE_START),
        )
        for place, (token, kind) in enumerate(zip(ids.tolist(), classes.tolist(), strict=True))
    ]  # fmt: skip


def show_token(pieces: list[str], token: int) -> str:
    """A token's text without the white space before it; a mark where it has none."""
    return (pieces[token].strip() if token < len(pieces) else "") or NO_TEXT


def pieces_of(directory: Path, manifest: Manifest) -> list[str]:
    """The text of each id."""
    return open_tokenizer(directory / manifest.tokenizer.file).pieces()


def open_picture_or_none(jpeg: bytes) -> Image.Image | None:
    """The picture, or None if it is none."""
    try:
        return Image.fromarray(decode(jpeg))
    except ValueError:
        return None


def shrink_to_data_url(jpeg: bytes) -> str | None:
    """The picture as the contact sheet has it."""
    picture = open_picture_or_none(jpeg)
    if picture is None:
        return None
    picture.thumbnail((_SHEET_PX, _SHEET_PX))
    return encode_data_url(picture)


def encode_data_url(picture: Image.Image) -> str:
    """JPEG as base64."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=88)
    return base64.b64encode(content.getvalue()).decode("ascii")
