"""Examples of an evaluation set for the report: neighbours, confusions, a map of the embeddings.

Everything is bounded, drawn by a seed, and plain enough for JSON.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.retrieval import ranks

SHOWN = 5  # answers shown of a query
CONFUSIONS = 8  # pairs kept of a task
_EACH = 2  # hits and misses among the queries, at least, where there are so many
_THUMBNAIL_PX = 96  # longest side
_CHUNK = 4096  # pictures compared at once


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """An evaluation set with the unit vectors of its pictures (n, E) and captions (m, E)."""

    dataset: Dataset
    captions: list[str]
    matches: Tensor
    """(P, 2) pairs of a picture and a caption of its own, by picture."""
    images: Tensor
    texts: Tensor

    @property
    def first_captions(self) -> NDArray[np.int64]:
        """(n,) each picture's first own caption."""
        rows, captions = self.matches.cpu().numpy().T
        return captions[np.searchsorted(rows, np.arange(len(self.images)))]


def nearest_captions(one: Embedded, count: int, seed: int) -> list[dict[str, Any]]:
    """Pictures with their five best captions and the rank of the best of their own."""
    shown = []
    for row in draw_queries(one.images, one.texts, one.matches, count, seed):
        own = one.matches[one.matches[:, 0] == row, 1].tolist()
        scores, order, rank = ranking(one.images[row], one.texts, own)
        shown.append(
            {
                "key": one.dataset.key(row),
                "jpeg_base64": _text_of(one.dataset.read(row).jpeg),
                "caption": one.captions[own[0]],
                "rank": rank,
                "of": len(one.texts),
                "top5": [
                    {"caption": one.captions[c], "score": float(scores[c]), "right": c in own}
                    for c in order[:SHOWN]
                ],
            }
        )
    return shown


def nearest_pictures(one: Embedded, count: int, seed: int) -> list[dict[str, Any]]:
    """Captions with their five best pictures, their own best picture, and that one's rank."""
    shown = []
    for text in draw_queries(one.texts, one.images, one.matches.flip(1), count, seed):
        own = one.matches[one.matches[:, 1] == text, 0].tolist()
        scores, order, rank = ranking(one.texts[text], one.images, own)
        shown.append(
            {
                "caption": one.captions[text],
                "rank": rank,
                "of": len(one.images),
                "right": _picture(one, order[rank - 1]),
                "top5": [
                    {**_picture(one, row), "score": float(scores[row]), "right": row in own}
                    for row in order[:SHOWN]
                ],
            }
        )
    return shown


def draw_queries(
    queries: Tensor, gallery: Tensor, matches: Tensor, count: int, seed: int
) -> list[int]:
    """Rows of `count` queries, drawn at random, with two hits and two misses where there are.

    A hit finds its own at rank 1. matches (P, 2) as `ranks` takes them; rows come in order.
    """
    hit = (ranks(queries, gallery, matches.to(queries.device)) == 1).cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(queries))
    first = {int(row) for kind in (True, False) for row in order[hit[order] == kind][:_EACH]}
    chosen = sorted(range(len(order)), key=lambda place: int(order[place]) not in first)
    # Those that must be shown displace the last drawn, so the others are the plain draw's.
    rows = {int(order[place]) for place in chosen[:count]}
    return sorted(rows)


def ranking(
    query: Tensor, gallery: Tensor, own: Sequence[int]
) -> tuple[list[float], list[int], int]:
    """(scores of the gallery, its rows from best to worst, rank from 1 of the best own row).

    Ties count against the query, as everywhere: an item that is not its own comes first.
    """
    scores = (gallery @ query).cpu().numpy()
    is_own = np.zeros(len(scores), bool)
    is_own[list(own)] = True
    order = np.lexsort((is_own, -scores))
    return scores.tolist(), order.tolist(), int(is_own[order].argmax()) + 1


def confusions(
    one: Embedded, task: str, classifier: Tensor, names: Sequence[str], classes: NDArray[np.int64]
) -> dict[str, Any]:
    """The pairs of classes that are taken for one another most often, by top-1.

    classifier (C, E), names of its classes, classes (n,) of the pictures. A pair has a direction:
    `count` of the `of` pictures of `name` were `taken_for` another. Of equal counts those come
    first whose clearest case, the picture shown, is the farthest from right.
    """
    own = torch.from_numpy(classes).to(one.images.device)
    best, margins = [], []
    for rows, of in zip(one.images.split(_CHUNK), own.split(_CHUNK), strict=True):
        scores = rows @ classifier.T
        top = scores.max(dim=1)
        best.append(top.indices)
        margins.append(top.values - scores[torch.arange(len(of), device=of.device), of])
    found, margin = torch.cat(best).cpu().numpy(), torch.cat(margins).cpu().numpy()
    wrong = np.flatnonzero(found != classes)
    pairs: dict[tuple[int, int], list[int]] = {}
    for row in wrong.tolist():
        pairs.setdefault((int(classes[row]), int(found[row])), []).append(row)
    clearest = {pair: max(rows, key=lambda row: margin[row]) for pair, rows in pairs.items()}
    hardest = sorted(pairs, key=lambda pair: (-len(pairs[pair]), -margin[clearest[pair]], pair))
    counts = np.bincount(classes, minlength=len(names))
    return {
        "task": task,
        "classes": len(names),
        "wrong": len(wrong),
        "n": len(classes),
        "pairs": [
            {
                "name": names[pair[0]],
                "taken_for": names[pair[1]],
                "count": len(pairs[pair]),
                "of": int(counts[pair[0]]),
                "example": _picture(one, clearest[pair]),
            }
            for pair in hardest[:CONFUSIONS]
        ],
    }


def _picture(one: Embedded, row: int) -> dict[str, Any]:
    jpeg = one.dataset.read(row).jpeg
    return {
        "key": one.dataset.key(row),
        "jpeg_base64": _text_of(thumbnail(jpeg)),
        "caption": one.captions[int(one.first_captions[row])],
    }


def thumbnail(jpeg: bytes) -> bytes:
    """A JPEG of at most 96 px a side."""
    picture = Image.fromarray(decode(jpeg))
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=85)
    return small.getvalue()


def _text_of(jpeg: bytes) -> str:
    return base64.b64encode(jpeg).decode("ascii")
