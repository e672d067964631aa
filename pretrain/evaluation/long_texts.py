"""Retrieval by texts longer than the context: whole, in pieces, beside the same texts cut."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.evaluation.features import Subject, text_features
from pretrain.evaluation.options import EvaluationOptions, LongTextsOptions
from pretrain.evaluation.retrieval import recall_figures, retrieval
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure
from pretrain.evaluation.zero_shot import class_embeddings
from pretrain.models.clip import CLIP
from pretrain.tokens.context import special_count


class LongTexts:
    """Sets whose texts are compared with pictures as a whole and up to the context."""

    name = "long-texts"
    is_quick = False

    def __init__(self, options: LongTextsOptions, sets: Sets) -> None:
        self._sets, self._batch = sets, options.batch_samples
        captions = None if options.caption is None else [options.caption]
        self._named = sets.open_all("long_texts.sets", options.sets, captions, "long_texts.caption")

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "LongTexts | None":
        return None if options.long_texts is None else cls(options.long_texts, sets)

    def evaluate(self, subject: Subject) -> list[Figure]:
        """R@k both ways by whole and by cut texts; `longer`: the share of the texts that the
        context cuts. Collective."""
        figures = []
        for name, opened in self._named.items():
            one = self._sets.sized(f"long_texts.sets.{name}", opened, subject.model.image.image_px)
            images, cut = subject.embed_set(one, self._batch)
            whole = whole_features(subject.model, one.caption_ids, self._batch)
            room = content_tokens(subject.model)
            longer = float(np.mean([len(ids) > room for ids in one.caption_ids]))
            facts: dict[str, float | str] = {"tier": one.dataset.tier, "longer": longer}
            for how, texts in (("whole", whole), ("cut", cut)):
                found = retrieval(images, texts, one.matches.to(images.device))
                for way, rates in found.items():
                    figures += recall_figures(self.name, name, f"{how}_{way}", rates, facts)
        return figures


def content_tokens(model: CLIP) -> int:
    """How many of a text's own tokens the context has room for."""
    return model.text.text_tokens - special_count(model.options.text.specials)


def whole_features(model: CLIP, texts: Sequence[NDArray[np.integer]], batch: int) -> Tensor:
    """(m, E) fp32: the normalised mean of the unit vectors of a text's pieces, which follow one
    another, each as long as the context but the last. Collective."""
    room = content_tokens(model)
    pieces, owners = [], []
    for place, ids in enumerate(texts):
        for start in range(0, max(len(ids), 1), room):
            pieces.append(ids[start : start + room])
            owners.append(place)
    features = text_features(model, pieces, batch)
    return class_embeddings(features, torch.tensor(owners, device=features.device), len(texts))
