"""Captions, word classes, sentences, the vocabulary."""
