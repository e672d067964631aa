"""Vocabularies of a given size, for models that read no real text."""

from pretrain.tokens.vocabulary import Vocabulary


def of_size(size: int) -> Vocabulary:
    return Vocabulary(size=size, pad_id=0, bos_id=1, eos_id=2)
