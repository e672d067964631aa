"""The text tokenizer: SentencePiece with fixed special ids and a fingerprint."""

import hashlib
from pathlib import Path

from sentencepiece import SentencePieceProcessor

# Fixed so that every dataset made by data_prep agrees; the model file records them too.
PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3


class Tokenizer:
    """Text to token ids by a SentencePiece model file; adds no special ids by itself."""

    def __init__(self, model_file: Path) -> None:
        if not model_file.is_file():
            raise FileNotFoundError(
                f"tokenizer file {model_file} not found: train one with "
                "`python -m data_prep build` or name an existing SentencePiece model"
            )
        model = model_file.read_bytes()
        self.file = model_file
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"{model_file} is not a SentencePiece model: name another with --tokenizer, or "
                "train one with `python -m data_prep build`"
            ) from error
        found = (
            self.processor.pad_id(),
            self.processor.bos_id(),
            self.processor.eos_id(),
            self.processor.unk_id(),
        )
        if found != (PAD_ID, BOS_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"{model_file} has special ids pad/bos/eos/unk {found}, asked for "
                f"{(PAD_ID, BOS_ID, EOS_ID, UNK_ID)}: train the model with `data_prep build`"
            )

    @property
    def vocab_size(self) -> int:
        return self.processor.vocab_size()

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
