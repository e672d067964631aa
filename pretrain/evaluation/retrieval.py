"""Retrieval recall@k both ways, several captions a picture or not, with its chance level."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.evaluation.features import Subject
from pretrain.evaluation.options import EvaluationOptions
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure

KS = (1, 5, 10)
_CHUNK, _GALLERY_CHUNK = 1024, 8192  # queries and gallery items compared at once


class Retrieval:
    """Pictures and captions of every evaluation set, each searched for by the other."""

    name = "retrieval"
    is_quick = True

    def __init__(self, sets: Sets, batch: int) -> None:
        self._sets, self._batch = sets, batch

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "Retrieval | None":
        return cls(sets, options.batch_samples) if sets.named else None

    def evaluate(self, subject: Subject) -> list[Figure]:
        """R@k both ways of every set. Collective."""
        figures = []
        for name, one in self._sets.at(subject.model.image.image_px).items():
            images, texts = subject.embed_set(one, self._batch)
            found = retrieval(images, texts, one.matches.to(images.device))
            for direction, rates in found.items():
                facts = {"tier": one.dataset.tier}
                figures += recall_figures(self.name, name, direction, rates, facts)
        return figures


def recall_figures(
    task: str, name: str, part: str, rates: dict[str, Any], facts: Mapping[str, float | str]
) -> list[Figure]:
    """One direction of `retrieval` as figures of a set."""
    return [
        Figure(
            task=task,
            set=name,
            part=part,
            name=f"r@{k}",
            value=rates[f"r@{k}"],
            chance=rates[f"chance_r@{k}"],
            n=rates["n"],
            facts=facts,
        )
        for k in KS
    ]


def ranks(queries: Tensor, gallery: Tensor, matches: Tensor) -> Tensor:
    """(Q,) rank, from 1, of each query's best match; max(KS) + 1 for every rank beyond max(KS).

    queries (Q, E), gallery (M, E), matches (P, 2) pairs of a query's and a gallery row that belong
    together; a query without one is beyond every rank. Ties: an item that is no match and scores
    exactly as high ranks before, so identical pictures never make a hit. Memory: one block of
    _CHUNK x _GALLERY_CHUNK scores, whatever Q and M are.
    """
    matches = matches[matches[:, 0].argsort()].contiguous()
    starts = torch.arange(0, len(queries) + _CHUNK, _CHUNK, device=matches.device)
    borders = torch.searchsorted(matches[:, 0].contiguous(), starts).tolist()
    out = []
    for block, start in enumerate(range(0, len(queries), _CHUNK)):
        own = matches[borders[block] : borders[block + 1]] - matches.new_tensor([start, 0])
        out.append(_block_ranks(queries[start : start + _CHUNK], gallery, own))
    return torch.cat(out)


def _block_ranks(queries: Tensor, gallery: Tensor, matches: Tensor) -> Tensor:
    """Of one block of queries: the best match and the max(KS) best others are kept as the gallery
    passes by."""
    most = max(KS)
    best = queries.new_full((len(queries),), -torch.inf)
    others = queries.new_full((len(queries), most), -torch.inf)
    for start in range(0, len(gallery), _GALLERY_CHUNK):
        part = gallery[start : start + _GALLERY_CHUNK]
        if start and len(part) < _GALLERY_CHUNK:
            # A product of another shape may round otherwise, and equal items must tie.
            part = F.pad(part, (0, 0, 0, _GALLERY_CHUNK - len(part)))
        scores = (queries @ part.T)[:, : len(gallery) - start]
        inside = (matches[:, 1] >= start) & (matches[:, 1] < start + scores.shape[1])
        rows, columns = matches[inside, 0], matches[inside, 1] - start
        best.scatter_reduce_(0, rows, scores[rows, columns], "amax")
        scores[rows, columns] = -torch.inf
        top = scores.topk(min(most, scores.shape[1]), dim=1).values
        others = torch.cat([others, top], dim=1).topk(most, dim=1).values
    found = 1 + (others >= best[:, None]).sum(dim=1)
    return torch.where(best > -torch.inf, found, most + 1)


def chance_recall(positives: NDArray[np.int64], gallery: int, k: int) -> float:
    """Mean chance that k random picks of the gallery hold one of a query's positives."""
    miss = np.ones(len(positives))
    for pick in range(min(k, gallery)):
        miss *= np.clip(gallery - positives - pick, 0, None) / (gallery - pick)
    return float(1 - miss.mean())


def retrieval(image_features: Tensor, text_features: Tensor, matches: Tensor) -> dict[str, Any]:
    """recall@k of image → text and text → image.

    image_features (n, E), text_features (m, E) and matches (P, 2), the (image, text) rows that
    belong together: several texts a picture and several pictures a text. A hit is any match among
    the first k. Returns per direction r@k and chance_r@k in 0..1 and the number of queries n.
    """
    directions = {
        "image_to_text": (image_features, text_features, matches),
        "text_to_image": (text_features, image_features, matches.flip(1)),
    }
    result: dict[str, Any] = {}
    for name, (queries, gallery, own) in directions.items():
        found = ranks(queries, gallery, own)
        positives = torch.bincount(own[:, 0], minlength=len(queries)).cpu().numpy()
        values: dict[str, Any] = {f"r@{k}": float((found <= k).float().mean()) for k in KS}
        values.update({f"chance_r@{k}": chance_recall(positives, len(gallery), k) for k in KS})
        result[name] = {**values, "n": len(found)}
    return result
