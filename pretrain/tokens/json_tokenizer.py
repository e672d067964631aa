"""tokenizer.json files as tokenizers: any model of the `tokenizers` package."""

import hashlib
import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from pretrain.tokens.vocabulary import Vocabulary

# A pattern that backtracks without end shows itself on long runs of what it takes, then something
# else, then anything that it may wait for.
_RUNS, _ENDS = ("a", " ", "1", "!", "\n", "a ", "é"), ("b", "!", "\n")
_MOST_IDS = 1 << 24
PROBES = tuple(run * 64 + end + string.printable for run, end in product(_RUNS, _ENDS))


class JsonTokenizer:
    """Text to token ids by a tokenizer.json that says its special ids: the padding's id, and a
    post-processor that puts bos before a text and eos behind it."""

    def __init__(self, file: Path, content: bytes) -> None:
        self.file = file
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.fast = read_json_tokenizer(file, content)
        padding = self.fast.padding
        around = self.fast.encode("", add_special_tokens=True).ids
        if padding is None or len(around) != 2:
            raise ValueError(
                f"{file} has padding {padding and padding['pad_token']!r} and puts ids {around} "
                "around a text; padding, and a first and a last id, are needed: let `data_prep "
                "build --tokenizer` read it, which can add them by --special-tokens PAD,BOS,EOS"
            )
        self.vocabulary = Vocabulary(
            size=max(self.fast.get_vocab(with_added_tokens=True).values()) + 1,
            pad_id=padding["pad_id"],
            bos_id=around[0],
            eos_id=around[1],
        )
        unknown = getattr(self.fast.model, "unk_token", None)
        self.unk_id: int | None = self.fast.token_to_id(unknown) if unknown else None
        self.fast.no_padding()
        self.fast.no_truncation()
        self.fast.encode_special_tokens = True  # "[SEP]" in a caption is text
        with _native_quiet():
            for text in PROBES:
                self._encode(text)

    def encode(self, text: str) -> list[int]:
        """Content token ids of a text, whole: no bos, eos or padding."""
        return self._encode(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, start): start[i] is the index in `text`, in characters, where token i begins."""
        encoded = self._encode(text)
        return encoded.ids, [start for start, _ in encoded.offsets]

    def _encode(self, text: str) -> Any:
        """ValueError where the package panics, as on a pattern that tries too many ways."""
        try:
            return self.fast.encode(text, add_special_tokens=False)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # not to be imported
                raise
            raise ValueError(
                f"{self.file}: the `tokenizers` package cannot encode the text {text[:20]!r} of "
                f"{len(text)} characters ({error}): a pattern in the file backtracks without end; "
                "name another with --tokenizer"
            ) from None

    def pieces(self) -> list[str]:
        """Each id's text by itself; "" where the vocabulary has a gap."""
        found = [""] * self.vocabulary.size
        for place in self.fast.get_vocab(with_added_tokens=True).values():
            found[place] = self.fast.decode([place], skip_special_tokens=False)
        return found


@contextmanager
def _native_quiet() -> Iterator[None]:
    """Within, nothing reaches stderr from the package, which tells of a panic there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def read_json_tokenizer(file: Path, content: bytes) -> Any:
    """A `tokenizers.Tokenizer`; ValueError names the file if it is none."""
    from tokenizers import Tokenizer

    try:
        fast = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(
            f"{file} is not a tokenizer.json that the `tokenizers` package reads ({error}): name "
            "another with --tokenizer"
        ) from error
    check_ids(fast, file)
    return fast


def check_ids(fast: Any, file: Path) -> None:
    """ValueError where an id of a `tokenizers.Tokenizer` is beyond any vocabulary: the package and
    the embedding both make room for all ids up to the highest."""
    ids = fast.get_vocab(with_added_tokens=True)
    piece = max(ids, key=ids.__getitem__, default=None)
    if piece is not None and ids[piece] >= _MOST_IDS:
        raise ValueError(
            f"{file}: {piece!r} has the id {ids[piece]:,}, ids end below {_MOST_IDS:,}: name "
            "another tokenizer"
        )
