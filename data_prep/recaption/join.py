"""Captions of a table to the samples of a dataset, by equal keys, on the disk.

Both sides are spread over buckets by a checksum of the key, so that equal keys meet in one; a
bucket is joined and tokenized by itself, in a worker, and its texts are stored by the samples'
rows. So memory holds one bucket a worker, whatever the sides' sizes.
"""

import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.build.samples import TOKENS_CAP
from data_prep.pool import Report
from data_prep.rejection import RejectedError
from data_prep.text.captions import CaptionTemplate, entries_left_out, make_captions
from data_prep.text.word_classes import TaggerName, TokenTagger
from pretrain.dataset.manifest import KEY_CHARS
from pretrain.tokens.tokenizer import open_tokenizer

_BUCKET_BYTES = 1 << 26  # of the table; a bucket takes some times as much in memory
BUCKET_ROWS = 1 << 19  # of the dataset
_EXACT = 1 << 53  # whole numbers up to this one are exact as floats
_BUCKETS_CAP = 800  # files open at once

# Sides of the join; no caption has such a name.
TABLE, SAMPLES = "the-table", "the-samples"

_HEAD = struct.Struct("<QHI")  # row, tokens, crc32; the ids and the classes follow


@dataclass(frozen=True, kw_only=True)
class JoinState:
    """What a bucket needs; it travels to the workers once."""

    work: Path
    tokenizer: Path
    tagger: TaggerName
    token_dtype: str
    vocab_size: int
    templates: list[CaptionTemplate]
    max_chars: int


@dataclass(kw_only=True)
class Joined:
    """What came of a bucket."""

    rows: int = 0  # of the table
    unmatched_rows: int = 0
    given: int = 0  # rows that give a sample a caption
    repeated: int = 0  # rows whose key an earlier one has
    example: str = ""  # of such
    left_out: int = 0  # entries of lists that were too many
    rejected: Counter[str] = field(default_factory=Counter)
    having: Counter[str] = field(default_factory=Counter)  # caption -> rows that give it
    counts: dict[str, NDArray[np.uint64]] = field(default_factory=dict)  # caption -> of each id


def key_text(value: Any, where: str) -> str | None:
    """A key as text; None where it is null or empty. ValueError for what is no text or number."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)  # of a column with decimals, or of whole numbers and nulls
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"{where} holds {str(value)[:40]!r} of type {type(value).__name__}: keys are texts or "
            "whole numbers; choose another column, or write it as one of these"
        )
    return str(value)


def is_hex_key(key: str) -> bool:
    """Whether it looks like a sample's key."""
    return len(key) == KEY_CHARS and not key.strip("0123456789abcdef")


def bucket_count(table_bytes: int, samples: int) -> int:
    """How many buckets keep each one small."""
    wanted = max(table_bytes // _BUCKET_BYTES, samples // BUCKET_ROWS) + 1
    return min(wanted, _BUCKETS_CAP)


def spread(entries: Iterable[tuple[str, Any]], work: Path, side: str, buckets: int) -> int:
    """Write (key, whatever JSON holds) to the bucket of each key; returns how many."""
    total = 0
    with ExitStack() as opened:
        files = [
            opened.enter_context(_bucket(work, side, number).open("w", encoding="utf-8"))
            for number in range(buckets)
        ]
        for key, value in entries:
            line = json.dumps([key, value], ensure_ascii=True)
            files[zlib.crc32(key.encode("utf-8", "surrogatepass")) % buckets].write(line + "\n")
            total += 1
    return total


def join_bucket(state: JoinState, number: int, report: Report) -> Joined:
    """Tokenize the captions of the rows that have samples, and store them by the samples' rows."""
    del report
    told = Joined()
    records: dict[str, tuple[str, dict[str, Any]]] = {}
    for key, (place, columns) in _read(state.work, TABLE, number):
        told.rows += 1
        if key in records:
            told.repeated += 1
            told.example = told.example or f"{key!r} at {records[key][0]} and at {place}"
        else:
            records[key] = (place, columns)
    rows_of: dict[str, list[int]] = {}
    for key, row in _read(state.work, SAMPLES, number):
        if key in records:
            rows_of.setdefault(key, []).append(row)
    told.unmatched_rows = len(records) - len(rows_of)
    if told.repeated:  # refused, so that nothing of it is needed
        return told
    tagger = TokenTagger(state.tagger, open_tokenizer(state.tokenizer))
    found: dict[str, list[tuple[int, bytes]]] = {one.name: [] for one in state.templates}
    told.counts = {one.name: np.zeros(state.vocab_size, np.uint64) for one in state.templates}
    for key, rows in rows_of.items():
        try:
            encoded = _encode(state, tagger, records[key][1])
        except RejectedError as rejection:
            told.rejected[rejection.reason] += 1
            continue
        told.given += 1
        told.left_out += entries_left_out(state.templates, records[key][1])
        for name, (ids, classes) in encoded.items():
            told.having[name] += 1
            content = np.array(ids, state.token_dtype).tobytes()
            crc32 = zlib.crc32(classes, zlib.crc32(content))
            np.add.at(told.counts[name], ids, np.uint64(len(rows)))
            for row in rows:
                head = _HEAD.pack(row, len(ids), crc32)
                found[name].append((row, head + content + classes))
    for name, texts in found.items():
        with _bucket(state.work, name, number).open("wb") as file:
            file.writelines(content for _, content in sorted(texts))
    _bucket(state.work, TABLE, number).unlink()  # the disk need not hold it any longer
    return told


def _encode(
    state: JoinState, tagger: TokenTagger, columns: dict[str, Any]
) -> dict[str, tuple[list[int], bytes]]:
    """Ids and class bytes by caption. RejectedError as in a build."""
    captions = make_captions(state.templates, columns, state.max_chars)
    encoded = {name: tagger.encode(text) for name, text in captions.items()}
    encoded = {name: pair for name, pair in encoded.items() if pair[0]}
    if not encoded:
        raise RejectedError("caption_empty")
    if any(len(ids) > TOKENS_CAP for ids, _ in encoded.values()):
        raise RejectedError("caption_too_long")
    return encoded


def read_texts(
    work: Path, name: str, number: int, token_dtype: str
) -> Iterator[tuple[int, int, int, bytes, bytes]]:
    """(row, tokens, crc32, ids, classes) of a caption's texts in a bucket, rows ascending."""
    width = np.dtype(token_dtype).itemsize
    with _bucket(work, name, number).open("rb") as file:
        while head := file.read(_HEAD.size):
            row, tokens, crc32 = _HEAD.unpack(head)
            yield row, tokens, crc32, file.read(tokens * width), file.read(tokens)


def _bucket(work: Path, side: str, number: int) -> Path:
    return work / f"{side}.{number}.spill"


def _read(work: Path, side: str, number: int) -> Iterator[tuple[str, Any]]:
    with _bucket(work, side, number).open(encoding="utf-8") as file:
        for line in file:
            key, value = json.loads(line)
            yield key, value
