"""The text tokenizer of a dataset: one protocol, a class for each kind of file."""

from pathlib import Path
from typing import Protocol

from pretrain.tokens.json_tokenizer import JsonTokenizer
from pretrain.tokens.sentence_pieces import SentencePieceTokenizer
from pretrain.tokens.vocabulary import Vocabulary


class Tokenizer(Protocol):
    """Text to content token ids; adds no special ids by itself."""

    file: Path
    sha256: str
    vocabulary: Vocabulary
    unk_id: int | None

    def encode(self, text: str) -> list[int]:
        """Content token ids of a text, whole: no bos, eos or padding."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, start): start[i] is the index in `text`, in characters, where token i begins, or
        where the white space before it does."""

    def pieces(self) -> list[str]:
        """Each id's text by itself."""


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a file. FileNotFoundError or ValueError name the file and the remedy."""
    if not file.is_file():
        raise FileNotFoundError(
            f"tokenizer file {file} not found: train one with `python -m data_prep build` or name "
            "an existing one"
        )
    return parse_tokenizer(file, file.read_bytes())


def parse_tokenizer(file: Path, content: bytes) -> Tokenizer:
    """The tokenizer that a file holds or is to hold. ValueError names the file and the remedy."""
    kind = JsonTokenizer if is_json(content) else SentencePieceTokenizer
    return kind(file, content)


def is_json(content: bytes) -> bool:
    """Whether a tokenizer's file is a tokenizer.json; a SentencePiece model begins otherwise."""
    return content.lstrip()[:1] == b"{"
