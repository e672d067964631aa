"""Whether a foreign model's tokenizer, as a file of ours, gives the ids that its library gives."""

import random
import re
import string
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pretrain.export.source import ForeignModel
from pretrain.models.options import ModelOptions
from pretrain.tokens.context import Specials, context
from pretrain.tokens.tokenizer import Tokenizer

SAMPLES = 16
_CAPTIONS = 1000
_ENDS = ("", "", "", ".", ",", "!", "?", "'s", '"', ")", ":", "-2")


def draw_texts(tokens: int, tokenizer: Tokenizer) -> list[str]:
    """Texts of random words that fit the context; an empty one first."""
    draw = random.Random(0)
    found = [""]
    while len(found) < SAMPLES:
        words = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 6)))
                 for _ in range(draw.randint(1, 8)))  # fmt: skip
        text = " ".join(words)
        while len(tokenizer.encode(text)) > tokens - 2:
            text = text[:-1].rstrip()
        found.append(text)
    return found


def context_ids(
    tokenizer: Tokenizer, texts: list[str], tokens: int, specials: Specials
) -> NDArray[np.int64]:
    ids = [np.asarray(tokenizer.encode(text), np.int64) for text in texts]
    return context(ids, tokens, specials, tokenizer.vocabulary)


def drop_unseen_ids(
    ids: NDArray[np.int64], options: ModelOptions, eos_id: int
) -> NDArray[np.int64]:
    """Ids without what stands behind the first eos, where a causal tower pools there."""
    if not (options.text.causal and options.text.pool in ("eos", "highest_id")):
        return ids
    behind = (ids == eos_id).cumsum(axis=1) - (ids == eos_id) > 0
    return np.where(behind, -1, ids)


def find_specials(
    source: ForeignModel, tokenizer: Tokenizer, texts: list[str], folder: Path
) -> Specials:
    """The special ids around a text with which ours equal the source's own."""
    eos, tokens = tokenizer.vocabulary.eos_id, source.tokens.text_tokens
    theirs = source.tokenize(texts).numpy()
    wanted = drop_unseen_ids(theirs, source.options, eos)
    for specials in reversed(get_args(Specials)):
        if np.array_equal(
            drop_unseen_ids(context_ids(tokenizer, texts, tokens, specials), source.options, eos),
            wanted,
        ):
            return specials
    ours = context_ids(tokenizer, texts, tokens, "bos_eos")
    raise ValueError(
        f"{folder}: its tokenizer cannot be taken along: {texts[1]!r} has the ids "
        f"{theirs[1].tolist()[:12]} there and {ours[1].tolist()[:12]} here, with any special ids"
    )


def check_captions(
    source: ForeignModel, tokenizer: Tokenizer, specials: Specials, folder: Path
) -> None:
    """ValueError names a caption whose ids are not the source's own, of a thousand made of the
    vocabulary's pieces and of random words, in either case and with punctuation."""
    captions = _captions(source.tokens.text_tokens, tokenizer)
    eos, tokens = tokenizer.vocabulary.eos_id, source.tokens.text_tokens
    theirs = drop_unseen_ids(source.tokenize(captions).numpy(), source.options, eos)
    ours = drop_unseen_ids(context_ids(tokenizer, captions, tokens, specials), source.options, eos)
    other = np.flatnonzero((theirs != ours).any(axis=1))
    if len(other):
        row = other[0]
        raise ValueError(
            f"{folder}: its tokenizer cannot be taken along: {len(other)} of {_CAPTIONS} captions "
            f"get other ids, {captions[row]!r} {theirs[row].tolist()[:12]} there and "
            f"{ours[row].tolist()[:12]} here; put there the one that the model was trained with"
        )


def _captions(tokens: int, tokenizer: Tokenizer) -> list[str]:
    """Captions that fit the context, white space single and at no end, without special tokens."""
    draw = random.Random(1)
    plain = re.compile(r"[!-~]+")
    pieces = [p for p in map(str.strip, tokenizer.pieces()) if plain.fullmatch(p)]
    pieces = [p for p in pieces if not re.search(r"[<>\[\]#]", p)]
    found: list[str] = []
    while len(found) < _CAPTIONS:
        words = []
        for _ in range(draw.randint(1, 12)):
            letters = "".join(draw.choices(string.ascii_lowercase + "éßñ0123456789", k=4))
            word = draw.choice((draw.choice(pieces or [letters]), letters))
            word = draw.choice((word, word, word.capitalize(), word.upper()))
            words.append(word + draw.choice(_ENDS))
        while words and len(tokenizer.encode(" ".join(words))) > tokens - 2:
            words.pop()
        found.append(" ".join(" ".join(words).split()))
    return found
