"""Retrieval recall@k both ways, over distinct captions, with its chance level."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KS = (1, 5, 10)
_CHUNK = 1024  # queries compared at once: memory is _CHUNK x gallery, never all x all


def ranks(queries: Tensor, gallery: Tensor, query_label: Tensor, gallery_label: Tensor) -> Tensor:
    """(Q,) rank, from 1, of each query's best gallery item of its own label.

    queries (Q, E), gallery (M, E). An item of another label with an equal score counts as ranked
    before it, so identical pictures never make a hit.
    """
    out = []
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ gallery.T
        right = query_label[start : start + _CHUNK, None] == gallery_label[None, :]
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        out.append(1 + ((scores >= best) & ~right).sum(dim=1))
    return torch.cat(out)


def chance_recall(positives: NDArray[np.int64], gallery: int, k: int) -> float:
    """Mean chance that k random picks of the gallery hold one of a query's positives."""
    miss = np.ones(len(positives))
    for pick in range(min(k, gallery)):
        miss *= np.clip(gallery - positives - pick, 0, None) / (gallery - pick)
    return float(1 - miss.mean())


def retrieval(
    image_features: Tensor, text_features: Tensor, caption_of_image: Tensor
) -> dict[str, Any]:
    """recall@k of image → text and text → image.

    image_features (n, E), text_features (m, E) of the distinct captions, caption_of_image (n,)
    the row of each picture's caption. A text's hit is any picture that has it. Returns per
    direction r@k and chance_r@k in 0..1 and the number of queries n.
    """
    captions = torch.arange(len(text_features), device=caption_of_image.device)
    pictures_of_caption = torch.bincount(caption_of_image, minlength=len(captions)).cpu().numpy()
    directions = {
        "image_to_text": (
            ranks(image_features, text_features, caption_of_image, captions),
            np.ones(len(image_features), np.int64),
            len(text_features),
        ),
        "text_to_image": (
            ranks(text_features, image_features, captions, caption_of_image),
            pictures_of_caption,
            len(image_features),
        ),
    }
    result: dict[str, Any] = {}
    for name, (found, positives, gallery) in directions.items():
        values: dict[str, Any] = {f"r@{k}": float((found <= k).float().mean()) for k in KS}
        values.update({f"chance_r@{k}": chance_recall(positives, gallery, k) for k in KS})
        result[name] = {**values, "n": len(found)}
    return result
