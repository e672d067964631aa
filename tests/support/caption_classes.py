"""A caption classifier of 50 ids, and its loss as SuperCLIP writes it: dense targets, float64."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CAPTIONS = 60
# Ids of every rarity: absent, in each caption, and more often than there are captions.
COUNTS = torch.arange(50) * 3 % 71


def add_classes(model: Any) -> None:
    """Give `small_clip` a classifier, always the same."""
    from pretrain.losses.classification import CaptionClassifier

    torch.manual_seed(1)
    model.classifier = CaptionClassifier(model, counts=COUNTS, captions=CAPTIONS)


def dense_loss(classifier: Any, pooled: Tensor, text_ids: Tensor) -> Tensor:
    """arXiv 2512.14480: the cross-entropy of log-softmax with the multi-hot of the ids, weighted by
    log((N + 1) / (n + 1)) and normalised to sum 1; pad, bos, eos (0, 1, 2) are in all captions."""
    occurs = COUNTS.double().clamp(max=CAPTIONS)
    occurs[:3] = CAPTIONS
    hot = torch.zeros(len(text_ids), len(COUNTS), dtype=torch.float64).scatter_(1, text_ids, 1.0)
    target = F.normalize(hot * torch.log((CAPTIONS + 1) / (occurs + 1)), p=1, dim=1)
    logits = classifier.linear(classifier.norm(pooled))
    return -(F.log_softmax(logits, dim=1) * target).sum(dim=1).mean()
