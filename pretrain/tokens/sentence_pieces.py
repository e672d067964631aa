"""SentencePiece models as tokenizers."""

import hashlib
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from pretrain.tokens.vocabulary import Vocabulary


class SentencePieceTokenizer:
    """Text to token ids by a SentencePiece model file, which records its special ids too."""

    def __init__(self, file: Path, content: bytes) -> None:
        self.file = file
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self.processor = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(
                f"{file} is neither a SentencePiece model nor a tokenizer.json, a WordPiece "
                "vocab.txt or CLIP's merges: name another with --tokenizer, or train one with "
                "`python -m data_prep build`"
            ) from error
        found = (self.processor.pad_id(), self.processor.bos_id(), self.processor.eos_id())
        if min(found) < 0:
            raise ValueError(
                f"{file} has special ids pad/bos/eos {found}, where -1 means none; all three are "
                "needed: train the model with `data_prep build`"
            )
        self.vocabulary = Vocabulary(
            size=self.processor.vocab_size(), pad_id=found[0], bos_id=found[1], eos_id=found[2]
        )
        self.unk_id: int | None = self.processor.unk_id()

    def encode(self, text: str) -> list[int]:
        """Content token ids of a text, whole: no bos, eos or padding."""
        return self.processor.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, start): start[i] is the index in `text`, in characters, where token i begins.

        A token that begins a word begins at the white space before it; one that stands for no
        character of its own (a byte of a character, a part of a ligature) begins where it stands.
        """
        # `offset_mapping` counts characters; the `proto` return type counts UTF-8 bytes.
        encoded = self.processor.encode(text, return_type="offset_mapping")
        return encoded["ids"], [start for start, _ in encoded["offsets"]]

    def pieces(self) -> list[str]:
        """Each id's text; white space before it is kept."""
        names = self.processor.id_to_piece(list(range(self.vocabulary.size)))
        return [name.replace("▁", " ") for name in names]
