"""Embeddings of a dataset: filters, clusters, pages of what is left out."""
