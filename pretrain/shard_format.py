"""The dataset directory: the contract between data_prep (writer) and pretrain (reader).

    DIR/manifest.json             counts, checksums, tokenizer, captions, rejections
    DIR/tokenizer.model           the SentencePiece model that made the token ids
    DIR/<tier>/00000.tar …        ustar shards, WebDataset-compatible; one folder per image tier
    DIR/<tier>/index.npy          one row per sample: where each member lies, its size and crc32

Every tier holds the same samples in the same order, so row i of one tier's index is row i of
every other's. This module imports no torch: data preparation must not.
"""

import enum
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.npy"
SHARD_FILE = "{shard:05d}.tar"

# Members of one sample, in file order: what training reads lies first and adjacent, so that one
# read brings the picture, the token ids and the word classes.
#   jpg   baseline RGB JPEG
#   ids   token ids of all captions, concatenated in the manifest's caption order, little endian,
#         of the manifest's token_dtype; content tokens only (no bos, eos or padding), not truncated
#   pos   one WordClass byte per token of `ids`
#   txt   the first caption, UTF-8
#   json  {"captions": {name: text}, "tokens": {name: count}, "meta": {column: value},
#          "width": px, "height": px}
MEMBERS = ("jpg", "ids", "pos", "txt", "json")
KEY_CHARS = 16  # a key is 64 bits in lower-case hex: sorts, never collides with an extension


class WordClass(enum.IntEnum):
    """Part of speech of a token, numbered by CLIPA's syntax priority (lower is kept first).

    Source: arXiv 2305.07017, section 3.2; clipa_jax `noun_tokenize`: NN*=1, JJ*=2, VB*=3, rest=4.
    """

    NOUN = 1
    ADJECTIVE = 2
    VERB = 3
    OTHER = 4


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Smallest little-endian unsigned integer that holds every id of the vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def index_dtype(caption_count: int) -> np.dtype[Any]:
    """Row of an index: key, shard number, (offset, size, crc32) per member, tokens per caption.

    `tokens[c]` is how many ids of `ids` belong to caption c; 0 means the sample lacks caption c.
    Offsets are those of the member's content inside its shard file, in bytes.
    """
    fields: list[Any] = [("key", f"S{KEY_CHARS}"), ("shard", "<u4")]
    for member in MEMBERS:
        fields.append((member, [("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")]))
    fields.append(("tokens", "<u2", (caption_count,)))
    return np.dtype(fields)


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file of one tier."""

    file: str  # relative to the dataset directory, e.g. "full/00000.tar"
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TierInfo:
    """One image tier: how its pictures were made, and where they are."""

    shortest_px: int | None  # pictures are shrunk to this shortest side; None keeps their size
    jpeg_quality: int
    shards: list[ShardInfo]
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer behind the ids; training refuses any other."""

    file: str  # relative to the dataset directory
    sha256: str
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a reader must know of a dataset directory."""

    samples: int
    captions: list[str]  # caption names; their order is the order inside `ids`
    token_dtype: str
    tiers: dict[str, TierInfo]
    tokenizer: TokenizerInfo
    tagger: str
    rejected: dict[str, int]  # reason -> count
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        raw = json.loads(text)
        if raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"dataset format version {raw.get('format_version')!r} found, this code reads "
                f"{FORMAT_VERSION}: rebuild the dataset with `python -m data_prep build`"
            )
        tiers = {
            name: TierInfo(**{**tier, "shards": [ShardInfo(**shard) for shard in tier["shards"]]})
            for name, tier in raw["tiers"].items()
        }
        return cls(**{**raw, "tiers": tiers, "tokenizer": TokenizerInfo(**raw["tokenizer"])})


def read_manifest(dataset_dir: Path) -> Manifest:
    """Manifest of a dataset directory. FileNotFoundError names the directory and the remedy."""
    path = dataset_dir / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {MANIFEST_FILE} in {dataset_dir}: not a finished dataset directory; make one with "
            f"`python -m data_prep build --source FILE --out {dataset_dir}`"
        )
    return Manifest.from_json(path.read_text(encoding="utf-8"))
