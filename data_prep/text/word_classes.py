"""A part-of-speech class for each token of a caption, by CLIPA's syntax priority."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.text.sentences import mark_sentences
from pretrain.tokens.tokenizer import Tokenizer
from pretrain.tokens.word_classes import SENTENCE_START, WordClass

TaggerName = Literal["textblob", "spacy", "vocabulary", "none"]
# A text's class at each of its characters, uint8: its word's; white space has that of what follows.
_Classes = Callable[[str], NDArray[np.uint8]]

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_CLASSES = {"NN": WordClass.NOUN, "JJ": WordClass.ADJECTIVE, "VB": WordClass.VERB}
_SPACY_MODEL = "en_core_web_sm"


class TokenTagger:
    """Captions to token ids, and one byte a token: its word's class, and whether it begins a
    sentence."""

    def __init__(self, name: TaggerName, tokenizer: Tokenizer) -> None:
        """ValueError, with the remedy, where the tagger's package is not installed."""
        self.tokenizer = tokenizer
        self.by_character: _Classes | None = None
        self.by_id: NDArray[np.uint8] | None = None
        if name == "textblob":
            self.by_character = _textblob_classes
        elif name == "spacy":
            load_spacy()
            self.by_character = _spacy_classes
        elif name == "vocabulary":
            self.by_id = _class_table(tuple(tokenizer.pieces()))

    def encode(self, text: str) -> tuple[list[int], bytes]:
        """(token ids, class bytes); a token has the class of the word in which it starts."""
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        starts = np.asarray(offsets, np.intp)
        if self.by_character is not None:
            classes = self.by_character(text)[starts]
        elif self.by_id is not None:
            classes = self.by_id[ids]
        else:
            classes = np.full(len(ids), WordClass.OTHER, np.uint8)
        mark_sentences(classes, starts, text, SENTENCE_START)
        return ids, classes.tobytes()


def tag_words(words: list[str]) -> list[WordClass]:
    """Class of each word of a sentence, by TextBlob's PatternTagger.

    It works offline (NLTK's taggers want a download). Words go in lower case where its lexicon
    has them so: in "A Red Dog" it would take any capitalised word for a name, hence a noun.
    """
    from textblob.en import parser  # brings nltk and scipy: seconds

    lexicon = parser.lexicon
    spelled = [word.lower() if word.lower() in lexicon else word for word in words]
    tags = parser.find_tags(spelled)
    return [_CLASSES.get(tag[:2], WordClass.OTHER) for _, tag in tags]


def _textblob_classes(text: str) -> NDArray[np.uint8]:
    """Classes of a text's characters by TextBlob."""
    words = list(_WORD.finditer(text))
    found = tag_words([word.group() for word in words])
    return _spread(text, [(*word.span(), kind) for word, kind in zip(words, found, strict=True)])


def _spacy_classes(text: str) -> NDArray[np.uint8]:
    """Classes of a text's characters by spaCy."""
    return _spread(
        text,
        [
            (token.idx, token.idx + len(token), _CLASSES[token.tag_[:2]])
            for token in load_spacy()(text)
            if token.tag_[:2] in _CLASSES
        ],
    )


def _spread(text: str, words: list[tuple[int, int, WordClass]]) -> NDArray[np.uint8]:
    """Words (start, end, class) to characters, and one beyond the last."""
    classes = np.full(len(text) + 1, WordClass.OTHER, np.uint8)
    for start, end, word_class in words:
        # A token starts with the space before its word.
        while start > 0 and text[start - 1].isspace():
            start -= 1
        classes[start:end] = word_class
    return classes


@lru_cache(maxsize=1)
def load_spacy() -> Any:
    """spaCy's English tagger. ValueError, with the commands, where it is not installed."""
    try:
        import spacy

        return spacy.load(_SPACY_MODEL, exclude=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise ValueError(
            f"tagger=spacy needs spaCy and its model {_SPACY_MODEL}, not both are installed "
            f"({' '.join(str(error).split())[:80]}): pip install spacy && python -m spacy download "
            f"{_SPACY_MODEL}, or choose --tagger textblob"
        ) from error


@lru_cache(maxsize=1)
def _class_table(pieces: tuple[str, ...]) -> NDArray[np.uint8]:
    """The class of each piece by itself, whatever stands around it, by TextBlob.

    Source: clipa_jax, `noun_tokenize`, which tags each vocabulary entry once.
    """
    table = np.full(len(pieces), WordClass.OTHER, np.uint8)
    for place, piece in enumerate(pieces):
        word = _WORD.search(piece)
        if word is not None and not piece.startswith("<"):
            table[place] = tag_words([word.group()])[0]
    return table
