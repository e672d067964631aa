"""Zero-shot classification: pictures against the mean text embedding of each class."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.evaluation.features import Subject, text_features
from pretrain.evaluation.options import EvaluationOptions
from pretrain.evaluation.sets import EvaluationSet, Sets
from pretrain.evaluation.task import Figure

_CHUNK = 4096  # pictures compared at once
_Z95 = 1.959963984540054  # standard normal: 95 % lies within this
_BOOTSTRAP_DRAWS = 2000


class ZeroShot:
    """Metadata columns as classes of every evaluation set's pictures."""

    name = "zero-shot"
    is_quick = True

    def __init__(self, options: EvaluationOptions, sets: Sets) -> None:
        self._tasks, self._sets, self._batch = options.zero_shot, sets, options.batch_samples
        self._ensembles = {
            column: sets.open(f"evaluation.zero_shot.{column}.label_ensemble", task.label_ensemble)
            for column, task in options.zero_shot.items()
            if task.label_ensemble is not None
        }
        for column, ensemble in self._ensembles.items():
            ensemble.classes(column)
        self.classes = {
            column: sorted({c for one in sets.named.values() for c in one.classes(column)})
            for column in options.zero_shot
        }

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "ZeroShot | None":
        opened = cls(options, sets)
        return opened if options.zero_shot and sets.named else None

    def evaluate(self, subject: Subject) -> list[Figure]:
        """Accuracies of every set by every column. Collective."""
        classifiers = {column: self.classifier(subject, column) for column in self._tasks}
        figures = []
        for name, one in self._sets.at(subject.model.image.image_px).items():
            images, _ = subject.embed_set(one, self._batch)
            for column, matrix in classifiers.items():
                found = zero_shot(images, self.class_index(one, column).to(images.device), matrix)
                facts = {"tier": one.dataset.tier}
                figures += accuracy_figures(self.name, name, column, found, facts)
        return figures

    def class_index(self, one: EvaluationSet, column: str) -> Tensor:
        """(n,) place of each picture's class among `classes`."""
        place = {name: index for index, name in enumerate(self.classes[column])}
        return torch.tensor([place[name] for name in one.classes(column)])

    def classifier(self, subject: Subject, column: str) -> Tensor:
        """(C, E) from prompts, or from the captions of each class in the ensemble's dataset."""
        names = self.classes[column]
        if column not in self._ensembles:
            pairs = [
                (np.asarray(subject.tokenizer.encode(prompt.format(name))), index)
                for index, name in enumerate(names)
                for prompt in self._tasks[column].prompts
            ]
        else:
            ensemble = self._ensembles[column]
            place = {name: index for index, name in enumerate(names)}
            classes = ensemble.classes(column)
            seen = {
                (caption, place[classes[row]])
                for row, caption in ensemble.matches.tolist()
                if classes[row] in place
            }
            pairs = [(ensemble.caption_ids[caption], index) for caption, index in sorted(seen)]
        features = text_features(subject.model, [ids for ids, _ in pairs], self._batch)
        owners = torch.tensor([index for _, index in pairs], device=features.device)
        return class_embeddings(features, owners, len(names))


def accuracy_figures(
    task: str, name: str, part: str, found: Mapping[str, Any], facts: Mapping[str, float | str]
) -> list[Figure]:
    """What `zero_shot` found as figures of a set."""
    classes = found["classes"]
    chances = {"top1": 1 / classes, "top5": min(1.0, 5 / classes)}
    chances["mean_per_class_recall"] = 1 / classes
    return [
        Figure(
            task=task,
            set=name,
            part=part,
            name=kind,
            value=found[kind],
            chance=chance,
            interval=found[f"{kind}_ci95"],
            n=found["n"],
            facts={**facts, "classes": classes, "largest_class": found["largest_class"]},
        )
        for kind, chance in chances.items()
    ]


def class_embeddings(text_features: Tensor, class_of_text: Tensor, classes: int) -> Tensor:
    """(C, E) unit vectors: the normalised mean of each class's texts (CLIP's prompt ensemble).

    text_features (m, E) unit norm, class_of_text (m,) in 0..C-1. A class without any text keeps a
    zero vector, so it is never predicted.
    """
    sums = text_features.new_zeros(classes, text_features.shape[1])
    return F.normalize(sums.index_add(0, class_of_text, text_features), dim=1)


def nearest_classes(image_features: Tensor, classifier: Tensor) -> Tensor:
    """(n, 5), or (n, C) of fewer classes: the classes of each picture, the nearest first."""
    count = min(5, len(classifier))
    rows = image_features.split(_CHUNK)
    return torch.cat([(some @ classifier.T).topk(count, dim=1).indices for some in rows])


def zero_shot(image_features: Tensor, class_of_image: Tensor, classifier: Tensor) -> dict[str, Any]:
    """Accuracy of image_features (n, E) against a classifier (C, E).

    top1, top5, mean_per_class_recall (over the classes that have pictures), each with its 95 %
    interval as NAME_ci95; classes, n, and largest_class: what always naming the commonest class
    gets.
    """
    classes = len(classifier)
    hits = nearest_classes(image_features, classifier) == class_of_image[:, None]
    counts = torch.bincount(class_of_image, minlength=classes)
    right = torch.bincount(class_of_image[hits[:, 0]], minlength=classes)
    present = counts > 0
    n, top1, top5 = len(hits), int(hits[:, 0].sum()), int(hits.any(dim=1).sum())
    return {
        "top1": top1 / n,
        "top1_ci95": wilson_interval(top1, n),
        "top5": top5 / n,
        "top5_ci95": wilson_interval(top5, n),
        "mean_per_class_recall": float((right[present] / counts[present]).double().mean()),
        "mean_per_class_recall_ci95": bootstrap_interval(
            right[present].cpu().numpy(), counts[present].cpu().numpy()
        ),
        "classes": classes,
        "largest_class": float(counts.max() / n),
        "n": n,
    }


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of n trials (Wilson 1927, without continuity correction)."""
    share, z2 = hits / n, _Z95**2
    centre, spread = (
        share + z2 / (2 * n),
        _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)),
    )
    low, high = ((centre + sign * spread) / (1 + z2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def bootstrap_interval(right: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[float, float]:
    """95 % interval of the mean of right/counts (C,): percentiles of a seeded bootstrap that draws
    each class's pictures again; so many draws of hits and misses are one binomial draw."""
    draws = np.random.default_rng(0)
    means = [
        float((draws.binomial(counts, right / counts) / counts).mean())
        for _ in range(_BOOTSTRAP_DRAWS)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
