"""Caption classification (SuperCLIP, arXiv 2512.14480): a picture alone names the words of its
caption, beside the contrastive loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.clip import CLIP


class CaptionClassifier(nn.Module):
    """A layer norm and a linear layer from the image tower's pooled vector to all token ids.

    A part of the model while it trains, so that DeepSpeed shards, steps and saves it as it does the
    towers, in their precision. No evaluation and no export has it.
    """

    counts: Tensor

    def __init__(self, model: CLIP, *, counts: Tensor, captions: int) -> None:
        """counts (V,) int64: how often each id occurs in so many captions."""
        super().__init__()
        width, vocabulary = model.options.image.width, model.text.vocabulary
        self.norm = nn.LayerNorm(width, eps=model.options.image.norm_eps)
        self.linear = nn.Linear(width, vocabulary.size)
        nn.init.normal_(self.linear.weight, std=width**-0.5)
        nn.init.zeros_(self.linear.bias)
        # Special ids are in every caption, so they weigh nothing.
        special = torch.tensor([vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id])
        counts = counts.clamp(max=captions).index_fill(0, special, captions)
        # Integers: a bf16 engine would round weights that are kept.
        self.register_buffer("counts", counts, persistent=False)
        self.captions = captions

    def targets(self, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """text_ids (B, T) → those sorted, and the share (B, T) fp32 of each in its row's target.

        The share of an id with n occurrences in N captions is log((N + 1) / (n + 1)), once a row,
        over the row's sum. SuperCLIP has for n the captions with the id, counted while it trains.
        A row without any word has shares of 0.
        """
        ids = text_ids.sort(dim=1).values
        is_first = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
        counts = self.counts[ids]
        # By the integers: the logarithm of a rounded 1 would be all of a row without a word.
        weighs = is_first & (counts < self.captions)
        rarity = torch.log((self.captions + 1) / (counts + 1)) * weighs
        return ids, F.normalize(rarity, p=1, dim=1)

    def forward(self, pooled: Tensor, text_ids: Tensor) -> Tensor:
        """pooled (B, D), text_ids (B, T) → (B,) fp32: each picture's cross-entropy of the softmax
        over the vocabulary with its target."""
        ids, shares = self.targets(text_ids)
        logits = self.linear(self.norm(pooled)).float()
        return (shares * (logits.logsumexp(dim=1, keepdim=True) - logits.gather(1, ids))).sum(dim=1)
