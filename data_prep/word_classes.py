"""A part-of-speech class for each token of a caption, by CLIPA's syntax priority."""

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
from textblob.en import parser

from pretrain.shard_format import WordClass
from pretrain.tokens.tokenizer import Tokenizer

TaggerName = Literal["pattern", "none"]

WORD = re.compile(r"\w+(?:['’-]\w+)*")
CLASSES = {"NN": WordClass.NOUN, "JJ": WordClass.ADJECTIVE, "VB": WordClass.VERB}


def tag_words(words: list[str]) -> list[WordClass]:
    """Class of each word of a sentence, by TextBlob's PatternTagger.

    It works offline (NLTK's taggers want a download). Words go in lower case where its lexicon
    has them so: in "A Red Dog" it would take any capitalised word for a name, hence a noun.
    """
    lexicon = parser.lexicon
    spelled = [word.lower() if word.lower() in lexicon else word for word in words]
    tags = parser.find_tags(spelled)
    return [CLASSES.get(tag[:2], WordClass.OTHER) for _, tag in tags]


def character_classes(text: str) -> np.ndarray:
    """Class of each character, uint8: its word's; white space has that of what follows it."""
    classes = np.full(len(text) + 1, WordClass.OTHER, dtype=np.uint8)
    words = list(WORD.finditer(text))
    for word, word_class in zip(words, tag_words([w.group() for w in words]), strict=True):
        start, end = word.span()
        # A token starts with the space before its word.
        while start > 0 and text[start - 1].isspace():
            start -= 1
        classes[start:end] = word_class
    return classes


def encode_pattern(tokenizer: Tokenizer, text: str) -> tuple[list[int], bytes]:
    """Token ids, and the class of the word in which each token starts as one byte a token."""
    ids, starts = tokenizer.encode_with_offsets(text)
    return ids, character_classes(text)[np.asarray(starts, dtype=np.intp)].tobytes()


def encode_untagged(tokenizer: Tokenizer, text: str) -> tuple[list[int], bytes]:
    """Token ids, and WordClass.OTHER for each."""
    ids = tokenizer.encode(text)
    return ids, bytes([WordClass.OTHER]) * len(ids)


TAGGERS: dict[TaggerName, Callable[[Tokenizer, str], tuple[list[int], bytes]]] = {
    "pattern": encode_pattern,
    "none": encode_untagged,
}
