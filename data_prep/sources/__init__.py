"""Corpora on disk to records, one reader a file; what they share stands in files of its own."""

from data_prep.sources.corpus import CacheOptions, Corpus, RowOptions, SourceOptions
from data_prep.sources.source import Record

__all__ = ["CacheOptions", "Corpus", "Record", "RowOptions", "SourceOptions"]
