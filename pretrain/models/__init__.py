"""Models: the two towers and CLIP."""
