"""Zero-shot classification: pictures against the mean text embedding of each class."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def class_embeddings(text_features: Tensor, class_of_text: Tensor, classes: int) -> Tensor:
    """(C, E) unit vectors: the normalised mean of each class's texts (CLIP's prompt ensemble).

    text_features (m, E) unit norm, class_of_text (m,) in 0..C-1. A class without any text keeps a
    zero vector, so it is never predicted.
    """
    sums = text_features.new_zeros(classes, text_features.shape[1])
    return F.normalize(sums.index_add(0, class_of_text, text_features), dim=1)


def zero_shot(image_features: Tensor, class_of_image: Tensor, classifier: Tensor) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of image_features (n, E) against a classifier (C, E).

    Beside them `classes`, `n`, and `largest_class`: what always naming the commonest class gets.
    """
    classes = len(classifier)
    order = (image_features @ classifier.T).topk(min(5, classes), dim=1).indices
    hits = order == class_of_image[:, None]
    counts = torch.bincount(class_of_image, minlength=classes)
    return {
        "top1": float(hits[:, 0].float().mean()),
        "top5": float(hits.any(dim=1).float().mean()),
        "classes": classes,
        "largest_class": float(counts.max() / len(image_features)),
        "n": len(image_features),
    }
