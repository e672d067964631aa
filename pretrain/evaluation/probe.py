"""Linear probe and k-nearest neighbours on frozen picture features of a labelled pair of sets."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.base import progress
from pretrain.evaluation.classification import picture_features
from pretrain.evaluation.features import Subject
from pretrain.evaluation.labelled import open_labelled
from pretrain.evaluation.options import EvaluationOptions, ProbeOptions
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure
from pretrain.evaluation.zero_shot import wilson_interval

_SCORES = 1 << 26  # similarities held at once
_TRIED = tuple(10.0**power for power in range(-1, 6))
_HELD_OUT = 0.2
_ITERATIONS = 1000


class Probe:
    """Both sets opened and checked before any model is built."""

    name = "probe"
    is_quick = False

    def __init__(self, options: ProbeOptions) -> None:
        self.options = options
        self.train = open_labelled("probe.train", options.train)
        self.test = open_labelled("probe.test", options.test)
        self.classes = self.train.order
        unknown = sorted(set(self.test.labels) - set(self.train.labels))
        if unknown:
            raise ValueError(
                f"probe.test={options.test} has labels that probe.train={options.train} has no "
                f"picture of ({unknown[:3]}): give sets of the same classes"
            )
        counts = np.bincount(self._places(self.train.labels), minlength=len(self.classes))
        if options.inverse_penalty is None and counts[counts > 0].min() < 2:
            raise ValueError(
                f"probe.train={options.train} has one picture of "
                f"{self.classes[int(np.argmax(counts == 1))]!r}, and a fifth is held out: give "
                "two or more of each class, or --probe.inverse_penalty 100"
            )
        if (counts > 0).sum() < 2:
            raise ValueError(f"probe.train={options.train} has one class: a probe needs two")

    def _places(self, labels: list[str]) -> NDArray[np.int64]:
        place = {label: at for at, label in enumerate(self.classes)}
        return np.array([place[label] for label in labels])

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "Probe | None":
        return None if options.probe is None else cls(options.probe)

    def evaluate(self, subject: Subject) -> list[Figure]:
        """Top-1 of the linear probe and of k-NN; fitted on the main rank alone, for the others
        nothing. Collective."""
        known, asked = (
            picture_features(subject, one, self.options.resize, self.options.batch_samples)
            for one in (self.train, self.test)
        )
        if not subject.is_main:
            return []
        labels, truth = self._places(self.train.labels), self._places(self.test.labels)
        penalty = self.options.inverse_penalty
        if penalty is None:
            penalty = _chosen_penalty(known.cpu().numpy(), labels)
        linear = _fit(known.cpu().numpy(), labels, penalty).predict(asked.cpu().numpy())
        nearest = nearest_class(
            asked,
            known,
            torch.from_numpy(labels).to(known.device),
            classes=len(self.classes),
            neighbours=self.options.neighbours,
            temperature=self.options.temperature,
        )
        neighbours = min(self.options.neighbours, len(known))
        return [
            self._figure("linear", linear, truth, {"inverse_penalty": penalty}),
            self._figure("knn", nearest.cpu().numpy(), truth, {"neighbours": neighbours}),
        ]

    def _figure(
        self,
        way: str,
        found: NDArray[np.int64],
        truth: NDArray[np.int64],
        setting: dict[str, float],
    ) -> Figure:
        hits = int((found == truth).sum())
        return Figure(
            task=self.name,
            set=self.options.test.name,
            part=way,
            name="top1",
            value=hits / len(truth),
            chance=1 / len(self.classes),
            interval=wilson_interval(hits, len(truth)),
            n=len(truth),
            facts={
                **setting,
                "classes": len(self.classes),
                "largest_class": float(np.bincount(truth).max() / len(truth)),
                "train_pictures": len(self.train.labels),
            },
        )


def nearest_class(
    asked: Tensor,
    known: Tensor,
    labels: Tensor,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """(n,) class of the heaviest vote among the nearest of known (m, E), whose classes are labels
    (m,); asked (n, E); both of unit norm. Of equal votes the lower class wins."""
    count = min(neighbours, len(known))
    found = []
    for rows in asked.split(max(1, _SCORES // len(known))):
        nearest = (rows @ known.T).topk(count, dim=1)
        weights = (nearest.values.double() / temperature).exp()
        votes = weights.new_zeros(len(rows), classes)
        found.append(votes.scatter_add_(1, labels[nearest.indices], weights).argmax(dim=1))
    return torch.cat(found)


def _fit(features: NDArray[np.float32], labels: NDArray[np.int64], penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    progress.doing(f"fitting the linear probe, C={penalty:g}")
    return LogisticRegression(C=penalty, max_iter=_ITERATIONS).fit(features, labels)


def _chosen_penalty(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The C that names the most of a held-out share right: every class has a picture on both
    sides, picked by a seeded shuffle."""
    draws = np.random.default_rng(0)
    held = np.zeros(len(labels), bool)
    for kind in np.unique(labels):
        own = draws.permutation(np.flatnonzero(labels == kind))
        held[own[: max(1, round(len(own) * _HELD_OUT))]] = True
    right = [
        (
            _fit(features[~held], labels[~held], penalty).predict(features[held]) == labels[held]
        ).mean()
        for penalty in _TRIED
    ]
    return _TRIED[int(np.argmax(right))]
