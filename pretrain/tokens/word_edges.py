"""Which ids begin or end a word, by the marks of their pieces."""

import re

import numpy as np
from numpy.typing import NDArray

WORD_BEGINS, WORD_ENDS, SPACE = 1, 2, 4
_PUNCTUATION = re.compile(r"\s*[!-/:-@\[-`{-~]+\s*")
_END = (" ", "</w>")


def word_edges(pieces: list[str]) -> NDArray[np.uint8]:
    """(V,) flags of each id, from a tokenizer's pieces: WORD_BEGINS, WORD_ENDS, and SPACE for white
    space alone, which is of the word that follows.

    Pieces begin a word with white space (SentencePiece, byte-level BPE), end it with white space or
    `</w>` (CLIP), or go on with `##` (WordPiece, where all others begin one): what most of them do
    counts. Punctuation is a word by itself, as NLTK's word_tokenize has it. ValueError where no
    piece has such a mark.
    """
    spaces = np.asarray([piece.isspace() for piece in pieces])
    begins = np.asarray([piece.startswith(" ") for piece in pieces])
    ends = np.asarray([piece.endswith(_END) for piece in pieces])
    goes_on = np.asarray([len(piece) > 2 and piece.startswith("##") for piece in pieces])
    marks = [(begins & ~spaces).sum(), (ends & ~spaces).sum(), goes_on.sum()]
    if not any(marks):
        raise ValueError("the dataset's tokenizer does not mark where a word begins")
    kind = int(np.argmax(marks))
    alone = np.asarray([bool(_PUNCTUATION.fullmatch(piece)) for piece in pieces])
    flags = np.zeros(len(pieces), np.uint8)
    flags[alone | (begins, False, ~goes_on)[kind]] |= WORD_BEGINS
    flags[alone | (False, ends, False)[kind]] |= WORD_ENDS
    flags[spaces] |= SPACE
    return flags
