"""A dataset directory in memory, for a model small enough to read it over and over."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.batches.images import centre_box, resize
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A dataset in memory."""

    images: Tensor  # (n, image_px, image_px, 3) uint8
    captions: Tensor  # (n, captions, T) token ids, padded with the vocabulary's pad_id
    caption_chances: Tensor  # (n, captions), 0 where a sample lacks the caption

    @classmethod
    def read(
        cls, dataset: Dataset, image_px: int, caption_weights: dict[str, float]
    ) -> "TrainingData":
        """Every picture and caption of a dataset. ValueError on captions that it does not have."""
        names = dataset.manifest.captions
        if unknown := sorted(set(caption_weights) - set(names)):
            raise ValueError(
                f"caption_weights name {unknown}, {dataset.directory} has captions {names}: "
                "change data.caption_weights"
            )
        given = caption_weights or dict.fromkeys(names, 1.0)
        weights = torch.tensor([given.get(name, 0.0) for name in names])
        counts = torch.from_numpy(dataset.index["tokens"].astype(np.int64))
        captions = torch.full(
            (len(dataset), len(names), int(counts.max())), dataset.vocabulary.pad_id
        )
        for row in range(len(dataset)):
            ids = torch.from_numpy(dataset.read(row).ids.astype(np.int64))
            for place, part in enumerate(ids.split(counts[row].tolist())):
                captions[row, place, : len(part)] = part
        chances = weights * (counts > 0)
        if not bool((chances.sum(dim=1) > 0).all()):
            raise ValueError(
                f"some samples of {dataset.directory} have none of the captions "
                f"{caption_weights}: weigh a caption in data.caption_weights that all have"
            )
        images = read_images(dataset, image_px)
        return cls(images=images, captions=captions, caption_chances=chances)


def read_images(dataset: Dataset, image_px: int) -> Tensor:
    """(n, image_px, image_px, 3) uint8: the centre square of every picture, resized."""
    images = np.empty((len(dataset), image_px, image_px, 3), np.uint8)
    for row in range(len(dataset)):
        picture = decode(dataset.read(row).jpeg)
        images[row] = resize(picture, centre_box(*picture.shape[:2]), image_px)
    return torch.from_numpy(images)
