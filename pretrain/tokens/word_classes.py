"""The byte that stands beside each stored token: its word's class, and where sentences begin."""

import enum

SENTENCE_START = 0x80  # bit 7 of a class byte: the first token of a sentence


class WordClass(enum.IntEnum):
    """Part of speech of a token, numbered by CLIPA's syntax priority (lower is kept first).

    Source: arXiv 2305.07017, section 3.2; clipa_jax `noun_tokenize`: NN*=1, JJ*=2, VB*=3, rest=4.
    """

    NOUN = 1
    ADJECTIVE = 2
    VERB = 3
    OTHER = 4
