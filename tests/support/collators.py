"""Collators of small datasets."""

from pathlib import Path

from pretrain.batches.collate import Collator
from pretrain.batches.options import CropOptions
from pretrain.dataset.reader import Dataset
from pretrain.tokens.options import TokenOptions


def collator(
    dataset: Path,
    caption_weights: dict[str, float] | None = None,
) -> Collator:
    """A collator of the tiny recipe's sizes, for a whole picture's tokens."""
    return Collator(
        dataset=Dataset(dataset, "full"),
        tokens=TokenOptions(image_px=32, text_tokens=6),
        patch_px=8,
        specials="bos",
        crop=CropOptions(),
        caption_weights=caption_weights or {},
        seed=0,
    )
