"""Retrieval by texts longer than the context: cut, their first sentence, or whole in pieces."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.evaluation.features import Subject, text_features
from pretrain.evaluation.options import EvaluationOptions, LongReading, LongTextsOptions
from pretrain.evaluation.retrieval import recall_figures, retrieval
from pretrain.evaluation.sets import EvaluationSet, Sets
from pretrain.evaluation.task import Figure
from pretrain.evaluation.zero_shot import class_embeddings
from pretrain.models.clip import CLIP
from pretrain.tokens.context import special_count


class LongTexts:
    """Sets whose texts are compared with pictures as each reading takes them."""

    name = "long-texts"
    is_quick = False

    def __init__(self, options: LongTextsOptions, sets: Sets) -> None:
        self._sets, self._batch, self._readings = sets, options.batch_samples, options.readings
        captions = None if options.caption is None else [options.caption]
        self._named = sets.open_all("long_texts.sets", options.sets, captions, "long_texts.caption")

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "LongTexts | None":
        return None if options.long_texts is None else cls(options.long_texts, sets)

    def evaluate(self, subject: Subject) -> list[Figure]:
        """R@k both ways by each reading; `longer`: the share of the texts that the context cuts.
        Collective."""
        figures = []
        for name, opened in self._named.items():
            one = self._sets.sized(f"long_texts.sets.{name}", opened, subject.model.image.image_px)
            images, cut = subject.embed_set(one, self._batch)
            room = content_tokens(subject.model)
            longer = float(np.mean([len(ids) > room for ids in one.caption_ids]))
            facts: dict[str, float | str] = {"tier": one.dataset.tier, "longer": longer}
            for how in self._readings:
                texts = cut if how == "cut" else read_features(subject.model, one, how, self._batch)
                found = retrieval(images, texts, one.matches.to(images.device))
                for way, rates in found.items():
                    figures += recall_figures(self.name, name, f"{how}_{way}", rates, facts)
        return figures


def content_tokens(model: CLIP) -> int:
    """How many of a text's own tokens the context has room for."""
    return model.text.text_tokens - special_count(model.options.text.specials)


def piece_ends(tokens: int, sentences: Sequence[int] | NDArray[np.integer], room: int) -> list[int]:
    """Where the pieces of a text end: as late as `room` tokens allow before one of the tokens that
    begin `sentences`; inside a sentence only where it is longer than `room`. A text has a piece."""
    ends, start = [], 0
    while tokens - start > room:
        borders = [int(place) for place in sentences if start < place <= start + room]
        start = max(borders, default=start + room)
        ends.append(start)
    return [*ends, tokens]


def read_features(model: CLIP, one: EvaluationSet, how: LongReading, batch: int) -> Tensor:
    """(m, E) fp32 of a set's texts: the first sentence's unit vector, or the normalised mean of
    those of all pieces. Collective."""
    pieces, owners = [], []
    for place, (ids, sentences) in enumerate(zip(one.caption_ids, one.sentences, strict=True)):
        if how == "first_sentence":
            later = sentences[sentences > 0]
            ends = [int(later[0]) if len(later) else len(ids)]
        else:
            ends = piece_ends(len(ids), sentences, content_tokens(model))
        pieces += [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        owners += [place] * len(ends)
    features = text_features(model, pieces, batch)
    owner = torch.tensor(owners, device=features.device)
    return class_embeddings(features, owner, len(one.caption_ids))
