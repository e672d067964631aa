"""The evaluator: every task on every evaluation set, as plain numbers."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.augment import Normalisation
from pretrain.data.dataset import Dataset
from pretrain.evaluation.features import image_features, text_features
from pretrain.evaluation.options import EvaluationOptions, ZeroShotOptions
from pretrain.evaluation.retrieval import retrieval
from pretrain.evaluation.zero_shot import class_embeddings, zero_shot
from pretrain.models.clip import CLIP
from pretrain.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One dataset directory with its captions and classes in memory, its pictures on disk."""

    dataset: Dataset
    captions: list[str]  # distinct first captions
    caption_ids: list[NDArray[np.integer]]
    caption_of_image: Tensor  # (n,)
    meta: list[dict[str, Any]]  # (n,)

    @classmethod
    def open(cls, directory: Path, tier: str) -> "EvaluationSet":
        dataset = Dataset(directory, tier)
        first = dataset.manifest.captions[0]
        place: dict[str, int] = {}
        ids: list[NDArray[np.integer]] = []
        caption_of_image, meta = [], []
        for row in range(len(dataset)):
            record = dataset.read_json(row)
            text = record["captions"].get(first)
            if text is None:
                raise ValueError(
                    f"{directory}: sample {dataset.key(row)} has no caption {first!r}, which "
                    "evaluation matches pictures with; rebuild the set with that caption first"
                )
            if text not in place:
                place[text] = len(place)
                ids.append(dataset.read(row).ids[: dataset.index[row]["tokens"][0]])
            caption_of_image.append(place[text])
            meta.append(record["meta"])
        return cls(
            dataset=dataset,
            captions=list(place),
            caption_ids=ids,
            caption_of_image=torch.tensor(caption_of_image),
            meta=meta,
        )

    def classes(self, column: str) -> list[str]:
        """Class of each picture (n,)."""
        if column not in self.meta[0]:
            raise ValueError(
                f"evaluation.zero_shot.{column}: {self.dataset.directory} has metadata "
                f"{sorted(self.meta[0])}; name one of these"
            )
        return [str(record[column]) for record in self.meta]


class Evaluator:
    """Evaluates plain CLIP models on the recipe's sets; opens the data once."""

    def __init__(
        self,
        options: EvaluationOptions,
        *,
        tier: str,
        tokenizer: Tokenizer,
        normalisation: Normalisation,
    ) -> None:
        self.options = options
        self.tier = tier
        self.tokenizer = tokenizer
        self.normalisation = normalisation
        self.sets = {name: self._open(path) for name, path in options.sets.items()}
        self._ensembles = {
            column: self._open(task.label_ensemble)
            for column, task in options.zero_shot.items()
            if task.label_ensemble is not None
        }
        self.classes = {
            column: sorted({c for one in self.sets.values() for c in one.classes(column)})
            for column in options.zero_shot
        }

    def _open(self, directory: Path) -> EvaluationSet:
        opened = EvaluationSet.open(directory, self.tier)
        if opened.dataset.manifest.tokenizer.sha256 != self.tokenizer.sha256:
            raise ValueError(
                f"evaluation set {directory} was tokenized by another tokenizer than the training "
                f"set: rebuild it with `data_prep build --tokenizer {self.tokenizer.file}`"
            )
        return opened

    def evaluate(self, model: CLIP) -> dict[str, Any]:
        """{set: {image_to_text, text_to_image, zero_shot: {column: …}}}. Collective."""
        model.eval()
        classifiers = {
            column: self._classifier(model, column, task)
            for column, task in self.options.zero_shot.items()
        }
        results = {}
        for name, one in self.sets.items():
            images, texts = self._features(model, one)
            results[name] = retrieval(images, texts, one.caption_of_image.to(images.device))
            results[name]["zero_shot"] = {
                column: zero_shot(images, self._class_index(one, column).to(images.device), matrix)
                for column, matrix in classifiers.items()
            }
        return results

    def gallery(self, model: CLIP, seed: int) -> dict[str, Any]:
        """Random pictures of the first set with their five nearest captions. Collective."""
        model.eval()
        name, one = next(iter(self.sets.items()))
        images, texts = self._features(model, one)
        count = min(self.options.gallery_images, len(images))
        rows = np.random.default_rng(seed).choice(len(images), count, replace=False)
        shown = []
        for row in sorted(int(row) for row in rows):
            scores, nearest = (images[row] @ texts.T).topk(min(5, len(texts)))
            own = int(one.caption_of_image[row])
            shown.append(
                {
                    "key": one.dataset.key(row),
                    "jpeg_base64": base64.b64encode(one.dataset.read(row).jpeg).decode("ascii"),
                    "caption": one.captions[own],
                    "top5": [
                        {"caption": one.captions[c], "score": float(s), "right": c == own}
                        for s, c in zip(scores.tolist(), nearest.tolist(), strict=True)
                    ],
                }
            )
        return {"set": name, "images": shown}

    def _features(self, model: CLIP, one: EvaluationSet) -> tuple[Tensor, Tensor]:
        batch = self.options.batch_samples
        return (
            image_features(model, one.dataset, self.normalisation, batch),
            text_features(model, one.caption_ids, batch),
        )

    def _class_index(self, one: EvaluationSet, column: str) -> Tensor:
        place = {name: index for index, name in enumerate(self.classes[column])}
        return torch.tensor([place[name] for name in one.classes(column)])

    def _classifier(self, model: CLIP, column: str, task: ZeroShotOptions) -> Tensor:
        """(C, E) from prompts, or from the captions of each class in the ensemble's dataset."""
        names = self.classes[column]
        if task.label_ensemble is None:
            pairs = [
                (np.asarray(self.tokenizer.encode(prompt.format(name))), index)
                for index, name in enumerate(names)
                for prompt in task.prompts
            ]
        else:
            ensemble = self._ensembles[column]
            place = {name: index for index, name in enumerate(names)}
            seen = {
                (int(caption), place[name])
                for caption, name in zip(
                    ensemble.caption_of_image, ensemble.classes(column), strict=True
                )
                if name in place
            }
            pairs = [(ensemble.caption_ids[caption], index) for caption, index in sorted(seen)]
        features = text_features(model, [ids for ids, _ in pairs], self.options.batch_samples)
        owners = torch.tensor([index for _, index in pairs], device=features.device)
        return class_embeddings(features, owners, len(names))
