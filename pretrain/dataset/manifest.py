"""The dataset directory: the contract between data_prep (writer) and pretrain (reader).

    DIR/manifest.json             counts, checksums, tokenizer, captions, rejections
    DIR/tokenizer.model           the SentencePiece model that made the token ids, or the
    DIR/tokenizer.json            tokenizer.json
    DIR/token_counts.npy          how often each id occurs in all captions, uint64
    DIR/<tier>/00000.tar …        ustar shards, WebDataset-compatible; one folder per image tier
    DIR/<tier>/index.npy          one row per sample: where each member lies, its size and crc32
    DIR/hashes/views.npy          may follow later: small views of each picture, uint8
    DIR/weights/<name>.npy        may follow later: how often each sample is shown an epoch, float32
    DIR/embeddings/<name>/        may follow later: a model's vectors of every picture and text
    DIR/captions/<name>/          may follow later: one more caption of the pictures, tokenized

Every tier holds the same samples in the same order, so row i of one tier's index is row i of
every other's, with the same shard number. Texts, ids and metadata stand once, in the text tier's
shards; those of every other tier hold pictures alone. This module imports no torch: it takes
seconds, and most of data preparation needs none.
"""

import hashlib
import json
import math
import re
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256

FORMAT_VERSION = 4
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.npy"
SHARD_FILE = "{shard:05d}.tar"
TOKEN_COUNTS_FILE = "token_counts.npy"
RECAPTIONS_FOLDER = "captions"
PICTURES_ROOT_FILE = "pictures_root.txt"

# The remedy for every damage that is found at the start.
COPY_AGAIN = "copy the dataset again or rebuild it with `python -m data_prep build`"

# Members of one sample, in file order: what training reads lies first and adjacent, so that one
# read of the text tier brings the picture, the token ids and the word classes.
#   jpg   baseline RGB JPEG
#   ids   token ids of all captions, concatenated in the manifest's caption order, little endian,
#         of the manifest's token_dtype; content tokens only (no bos, eos or padding), not truncated
#   pos   one byte per token of `ids`: its WordClass, with SENTENCE_START where it begins a sentence
#   txt   the first caption, UTF-8
#   json  {"captions": {name: text}, "tokens": {name: count}, "meta": {column: value},
#          "width": px, "height": px}
MEMBERS = ("jpg", "ids", "pos", "txt", "json")
KEY_CHARS = 16  # a key is 64 bits in lower-case hex: sorts, never collides with an extension


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Smallest little-endian unsigned integer that holds every id of the vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def index_dtype(caption_count: int) -> np.dtype[Any]:
    """Row of an index: key, shard number, (offset, size, crc32) per member, tokens per caption.

    `tokens[c]` is how many ids of `ids` belong to caption c; 0 means the sample lacks caption c.
    Offsets are those of the member's content inside its file, in bytes: of `jpg` in this tier's
    shard, of all others in the text tier's shard of the same number.
    """
    fields: list[Any] = [("key", f"S{KEY_CHARS}"), ("shard", "<u4")]
    for member in MEMBERS:
        fields.append((member, [("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")]))
    fields.append(("tokens", "<u2", (caption_count,)))
    return np.dtype(fields)


# The head of an index row, for readers that take one row at a time: key, shard, and (offset, size,
# crc32) of the three members that training reads.
ROW_HEAD = struct.Struct(f"<{KEY_CHARS}sI" + "QII" * 3)
TAR_BLOCK = 512  # a member's header; its content is padded to a multiple

# A manifest is a file from elsewhere: other types and unknown keys are refused, not guessed at.
_STRICT = ConfigDict(strict=True, extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class PicturesInfo:
    """The tar of anyone's making in which the pictures of a shard's samples lie."""

    file: str  # relative to the folder that the dataset's pictures_root.txt names
    bytes: int


def members_inside(pictures: PicturesInfo | None, is_text_tier: bool) -> tuple[str, ...]:
    """What a shard file itself holds of each sample; `pictures`: the tar that has its picture."""
    picture = MEMBERS[:1] if pictures is None else ()
    return picture + MEMBERS[1:] if is_text_tier else picture


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file of one tier."""

    file: str  # relative to the dataset directory, e.g. "full/00000.tar"
    samples: int
    bytes: int
    sha256: str
    pictures: PicturesInfo | None = None  # None: in the shard itself

    @property
    def picture_bytes(self) -> int:
        """Of the file in which the pictures lie."""
        return self.bytes if self.pictures is None else self.pictures.bytes


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class TierInfo:
    """One image tier: how its pictures were made, and where they are."""

    shortest_px: int | None  # pictures are shrunk to this shortest side; None keeps their size
    jpeg_quality: int | None  # None: they are as they came
    shards: list[ShardInfo]
    index_sha256: str

    @property
    def bytes(self) -> int:
        """Of all shards, and of the tars in which their pictures lie."""
        tars = {shard.pictures for shard in self.shards if shard.pictures is not None}
        return sum(shard.bytes for shard in self.shards) + sum(tar.bytes for tar in tars)

    @property
    def in_place(self) -> bool:
        """Whether pictures lie in tars of anyone's making, which have no sha256 of ours."""
        return any(shard.pictures is not None for shard in self.shards)


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer behind the ids; training refuses any other."""

    file: str  # relative to the dataset directory
    sha256: str
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int | None


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class TokenCountsInfo:
    """How often each id of the vocabulary occurs in all captions of the dataset."""

    file: str  # relative to the dataset directory
    sha256: str


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a reader must know of a dataset directory."""

    samples: int
    captions: list[str]  # caption names; their order is the order inside `ids`
    token_dtype: str
    tiers: dict[str, TierInfo]
    text_tier: str  # whose shards hold all but the pictures of the other tiers
    tokenizer: TokenizerInfo
    tagger: str
    rejected: dict[str, int]  # reason -> count
    token_counts: TokenCountsInfo
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        plain = asdict(self)
        for tier in plain["tiers"].values():
            for shard in tier["shards"]:
                if shard["pictures"] is None:
                    del shard["pictures"]
        return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def fingerprint(self) -> str:
        """sha256 of the JSON: equal only for the same samples, tiers and tokenizer."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """ValueError, in one line, on another format version or anything that is no manifest."""
        try:
            version = TypeAdapter(_Version).validate_json(text).format_version
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"dataset format version {version!r} found, this code reads {FORMAT_VERSION}: "
                    "make the dataset again with `python -m data_prep build` (or `index`)"
                )
            manifest = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ValueError(f"{place}: {first['msg']}; {COPY_AGAIN}") from error
        fault = manifest.fault()
        if fault is not None:
            raise ValueError(f"{fault}; {COPY_AGAIN}")
        return manifest

    def fault(self) -> str | None:
        """The first thing that the numbers contradict each other in, if any."""
        if self.samples < 1 or not self.captions or len(set(self.captions)) < len(self.captions):
            return f"samples={self.samples}, captions={self.captions}: at least one, no name twice"
        if self.token_dtype != token_dtype(self.tokenizer.vocab_size).str:
            return (
                f"token_dtype={self.token_dtype!r} does not go with a vocabulary of "
                f"{self.tokenizer.vocab_size} ids"
            )
        if self.text_tier not in self.tiers:
            return f"text_tier={self.text_tier!r} is not one of the tiers {sorted(self.tiers)}"
        text_counts = [shard.samples for shard in self.tiers[self.text_tier].shards]
        for name, tier in self.tiers.items():
            if tier.in_place and name != self.text_tier:
                return f"tiers.{name} has pictures in place, text_tier={self.text_tier!r}"
            if tier.in_place and any(shard.pictures is None for shard in tier.shards):
                return f"tiers.{name} has some pictures in place, some in its shards"
            counts = [shard.samples for shard in tier.shards]
            if sum(counts) != self.samples or min(counts, default=0) < 1:
                return (
                    f"tiers.{name} has {sum(counts)} samples in {len(counts)} shards, the dataset "
                    f"has {self.samples}"
                )
            if counts != text_counts:
                return f"tiers.{name} is cut into other shards than the tier {self.text_tier}"
        return None


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Read before anything else: another version may have other keys."""

    format_version: Any = None


def read_manifest(dataset_dir: Path) -> Manifest:
    """Manifest of a dataset directory.

    FileNotFoundError names the directory and the remedy; ValueError names the file and its fault.
    """
    path = dataset_dir / MANIFEST_FILE
    if not path.is_file():
        is_corpus = dataset_dir.is_dir() and any(dataset_dir.iterdir())
        source, out = (dataset_dir, "DATASET") if is_corpus else ("CORPUS", dataset_dir)
        raise FileNotFoundError(
            f"no {MANIFEST_FILE} in {dataset_dir}: not a finished dataset directory; make one with "
            f"`python -m data_prep build --source {source} --out {out}`"
        )
    try:
        return Manifest.from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def side_of(shortest_px: int | None) -> float:
    """By which tiers are sorted: infinite where pictures keep their size."""
    return math.inf if shortest_px is None else shortest_px


def tier_for(manifest: Manifest, image_px: int) -> str:
    """The smallest image tier whose shortest side is at least image_px, or else the largest."""
    sides = {name: side_of(tier.shortest_px) for name, tier in manifest.tiers.items()}
    enough = [name for name, side in sides.items() if side >= image_px]
    return min(enough, key=sides.__getitem__) if enough else max(sides, key=sides.__getitem__)


def read_token_counts(dataset_dir: Path, manifest: Manifest) -> np.ndarray:
    """(vocab_size,) uint64: how often each id occurs in all captions.

    ValueError or OSError names the file, and the remedy, where the dataset has none or another.
    """
    told = manifest.token_counts
    path = path_inside(dataset_dir, told.file, "token_counts.file")
    if file_sha256(path) != told.sha256:
        raise ValueError(f"{path}: its sha256 is not the manifest's; {COPY_AGAIN}")
    try:
        counts = np.array(read_array(path))
    except ValueError as error:
        raise ValueError(f"{path} is {error}; {COPY_AGAIN}") from error
    size = manifest.tokenizer.vocab_size
    if counts.dtype != np.dtype("<u8") or counts.shape != (size,):
        raise ValueError(
            f"{path} has {counts.dtype} {counts.shape}, not one uint64 for each of {size} ids; "
            f"{COPY_AGAIN}"
        )
    return counts


def path_inside(dataset_dir: Path, name: str, entry: str) -> Path:
    """The file that an entry of the manifest, or an option, names; ValueError where it is not in
    `dataset_dir`.

    Symbolic links may point to other places inside, and the dataset's directory may be one itself.
    """
    path = dataset_dir / name
    inside = "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not path.resolve().is_relative_to(dataset_dir.resolve()):
        raise ValueError(
            f"{dataset_dir / MANIFEST_FILE}: {entry}={name!r} leads out of the dataset's "
            "directory, which is never followed: copy the file into it, name it by a relative path"
        )
    return path


def weights_file(dataset_dir: Path, name: str, option: str) -> Path:
    """Where a dataset's weights of a name lie; ValueError where it is no plain name, or a link
    leads out, as for the other two."""
    _check_name(name, f"{dataset_dir}/weights/NAME.npy", option)
    return path_inside(dataset_dir, f"weights/{name}.npy", option)


def concepts_file(dataset_dir: Path, name: str, option: str) -> Path:
    """Where a dataset's concepts of a name lie; ValueError where it is no plain name."""
    _check_name(name, f"{dataset_dir}/concepts/NAME.npy", option)
    return path_inside(dataset_dir, f"concepts/{name}.npy", option)


def embeddings_folder(dataset_dir: Path, name: str, option: str) -> Path:
    """Where a dataset's embeddings of a name lie; ValueError where it is no plain name."""
    _check_name(name, f"{dataset_dir}/embeddings/NAME", option)
    return path_inside(dataset_dir, f"embeddings/{name}", option)


def recaption_folder(dataset_dir: Path, name: str, option: str) -> Path:
    """Where a caption lies that came later; ValueError where its name is no plain one."""
    _check_name(name, f"{dataset_dir}/{RECAPTIONS_FOLDER}/NAME", option)
    return path_inside(dataset_dir, f"{RECAPTIONS_FOLDER}/{name}", option)


def _check_name(name: str, place: str, option: str) -> None:
    """ValueError for a name that could lead elsewhere than to `place`."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) or name.endswith(".npy"):
        raise ValueError(
            f"{option}={name!r} must be a name as in {place}: letters, digits, and . _ - inside, "
            "without .npy"
        )
