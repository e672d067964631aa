"""The corpus's tokenizer: a given one, or a SentencePiece model trained on its captions."""

import io
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sentencepiece import SentencePieceTrainer

from pretrain.tokens.given import CLIP

# Of the models that are trained here; training reads them from the manifest.
PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions:
    """How text becomes tokens"""

    tokenizer: Path | None = None
    """An existing tokenizer, e.g. of the training dataset when building its test split: the file
    of a SentencePiece model, a tokenizer.json (of `tokenizers` or transformers), BERT's vocab.txt
    or CLIP's bpe_simple_vocab_16e6.txt.gz; or the word clip, which takes the last from the
    installed open_clip. Null trains a SentencePiece model on the captions of this corpus."""
    special_tokens: str | None = None
    """PAD,BOS,EOS: the tokens that a given tokenizer.json has for padding and around a text, where
    it does not say so itself, e.g. "<pad>,<s>,</s>"."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """SentencePiece model to train."""
    vocab_size: int = 16384
    """Most pieces that the trained tokenizer may have; a small corpus gives fewer."""
    lower_case: bool = True
    """Fold case, as CLIP does (normalisation nmt_nfkc_cf rather than nmt_nfkc)."""
    byte_fallback: bool = True
    """Spell characters outside the vocabulary as UTF-8 bytes (256 pieces) rather than as
    unknown."""
    tokenizer_captions: int = 500_000
    """Most captions to train the tokenizer on; beyond that, a fixed random sample of this size.
    SentencePiece takes 1.3 KB of memory for each, once, in one process."""

    def __post_init__(self) -> None:
        if self.tokenizer not in (None, CLIP) and not Path(self.tokenizer).is_file():
            inside = "tokenizer.json, tokenizer.model or vocab.txt in it"
            found = f"is a folder; name {inside}" if self.tokenizer.is_dir() else "no such file"
            raise FileNotFoundError(f"tokenizer={self.tokenizer}: {found} with --tokenizer")
        if self.special_tokens is not None and self.tokenizer is None:
            raise ValueError(
                f"special_tokens={self.special_tokens!r} is for a given tokenizer.json: name it "
                "by --tokenizer, or drop --special-tokens"
            )
        if self.vocab_size < 8:
            raise ValueError(f"vocab_size={self.vocab_size}: choose 8 or more")
        if self.tokenizer_captions < 1:
            raise ValueError(f"tokenizer_captions={self.tokenizer_captions}: choose 1 or more")


def sample_texts(texts: Iterable[str], count: int) -> list[str]:
    """At most `count` texts, each equally likely, the same ones for the same input.

    Source: reservoir sampling, algorithm R (Vitter 1985).
    """
    chance = random.Random(0)
    kept: list[str] = []
    for seen, text in enumerate(texts):
        if seen < count:
            kept.append(text)
        elif (slot := chance.randrange(seen + 1)) < count:
            kept[slot] = text
    return kept


def train_tokenizer(captions: list[str], options: VocabularyOptions) -> bytes:
    """A SentencePiece model file: the same bytes for the same captions in the same order.

    ValueError if the vocabulary is too small for their characters.
    """
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type=options.model_type,
            vocab_size=options.vocab_size,
            hard_vocab_limit=False,  # a small corpus may not have as many pieces
            normalization_rule_name="nmt_nfkc_cf" if options.lower_case else "nmt_nfkc",
            byte_fallback=options.byte_fallback,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            max_sentence_length=1 << 20,  # bytes; the default drops long captions without a word
            num_threads=1,  # threads change the order of sums, hence the pieces
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"tokenizer training failed with vocab_size={options.vocab_size}, "
            f"byte_fallback={options.byte_fallback}: {error}; change --vocab-size"
        ) from error
    return model.getvalue()
