"""Export: a trained CLIP as a folder that this package and other libraries load."""

from pretrain.export.command import main
from pretrain.export.native import ExportedModel, load

__all__ = ["ExportedModel", "load", "main"]
