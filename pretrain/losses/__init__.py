"""Losses, one objective a file, each owning its parameters."""
