"""Each ability as a zero-shot choice among its captions, beside chance."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from pretrain.batches.images import evaluation_pixels
from pretrain.evaluation.abilities.sets import ABILITIES, Question, questions, things
from pretrain.evaluation.features import Subject, distribute_rows, embed_pixels, text_features
from pretrain.evaluation.options import AbilitiesOptions, EvaluationOptions
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure
from pretrain.evaluation.zero_shot import wilson_interval
from pretrain.tokens.context import context


class Abilities:
    """The questions of every ability; their pictures are drawn when they are looked at."""

    name = "abilities"
    is_quick = False

    def __init__(self, options: AbilitiesOptions) -> None:
        self.options = options
        drawings = things()
        self.objects = "shapes and drawings" if drawings else "shapes"
        self.questions: dict[str, list[Question]] = {
            ability: questions(ability, options.seed, options.pictures, drawings)
            for ability in ABILITIES
        }

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "Abilities | None":
        asked = options.abilities
        if not asked:
            return None
        return cls(asked if isinstance(asked, AbilitiesOptions) else AbilitiesOptions())

    def evaluate(self, subject: Subject) -> list[Figure]:
        """Top-1 of each ability. Collective.

        indistinct: share of the questions whose right caption and another are the same tokens,
        by the tokenizer's vocabulary or cut to the context; these cannot be answered.
        """
        return [self._figure(name, asked, subject) for name, asked in self.questions.items()]

    def _figure(self, ability: str, asked: list[Question], subject: Subject) -> Figure:
        model, batch = subject.model, self.options.batch_samples
        image_px = model.image.image_px

        def embed(rows: list[int]) -> Tensor:
            drawn = [evaluation_pixels(np.asarray(asked[row].draw()), image_px) for row in rows]
            return embed_pixels(model, np.stack(drawn), rows, subject.normalisation, subject.kept)

        images = distribute_rows(len(asked), batch, embed)
        captions = list(dict.fromkeys(text for one in asked for text in one.captions))
        ids = [np.asarray(subject.tokenizer.encode(text)) for text in captions]
        texts = text_features(model, ids, batch)
        tower = model.text
        seen = context(ids, tower.text_tokens, model.options.text.specials, tower.vocabulary)
        place = {text: at for at, text in enumerate(captions)}
        hits = indistinct = 0
        for image, one in zip(images, asked, strict=True):
            own = [place[text] for text in one.captions]
            same = int((seen[own] == seen[own[one.answer]]).all(axis=1).sum()) > 1
            indistinct += same
            scores = texts[own] @ image
            others = torch.cat([scores[: one.answer], scores[one.answer + 1 :]])
            # A tie is no answer; the same tokens are one, however their scores are rounded.
            hits += not same and bool((scores[one.answer] > others).all())
        return Figure(
            task=self.name,
            part=ability,
            name="top1",
            value=hits / len(asked),
            chance=float(np.mean([1 / len(one.captions) for one in asked])),
            interval=wilson_interval(hits, len(asked)),
            n=len(asked),
            facts={"indistinct": indistinct / len(asked), "objects": self.objects},
        )

    def pixels_sha256(self) -> dict[str, str]:
        """{ability: sha256 of its pictures as they are drawn}. They depend on the versions of
        Pillow and FreeType, and on whether the drawings are there."""
        found = {}
        for ability, asked in self.questions.items():
            digest = hashlib.sha256()
            for one in asked:
                digest.update(one.draw().tobytes())
            found[ability] = digest.hexdigest()
        return found
