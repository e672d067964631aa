"""Evaluation: retrieval and zero-shot classification of a plain CLIP, distributed."""
