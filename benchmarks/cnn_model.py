"""The baseline's model: a small CNN for pictures, a bag of words for texts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.tokens.vocabulary import Vocabulary


class Baseline(nn.Module):
    """Two towers into one unit sphere: four strided convolutions, and a mean of word vectors."""

    channels = (3, 48, 96, 192, 256)
    embed_dim = 128

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip(self.channels, self.channels[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.image = nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(self.channels[-1], self.embed_dim),
        )
        self.pad_id = vocabulary.pad_id
        self.words = nn.EmbeddingBag(
            vocabulary.size, 128, mode="mean", padding_idx=vocabulary.pad_id
        )
        nn.init.normal_(self.words.weight, std=0.02)
        self.text = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, self.embed_dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, embed_dim), unit norm."""
        return F.normalize(self.image(pixels), dim=1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """(B, T) token ids padded with the vocabulary's pad_id → (B, embed_dim), unit norm."""
        return F.normalize(self.text(self.words(ids)), dim=1)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """InfoNCE of a batch of pairs, both directions."""
        logits = self.log_scale.exp() * self.encode_image(pixels) @ self.encode_text(ids).T
        targets = torch.arange(len(logits))
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
