"""Linear probe and k-nearest neighbours on frozen picture features of a labelled pair of sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.base import progress
from pretrain.base.checks import check_positive
from pretrain.batches.options import Normalisation, Resize
from pretrain.evaluation.classification import picture_features
from pretrain.evaluation.features import KeptTokens
from pretrain.evaluation.labelled import open_labelled
from pretrain.evaluation.zero_shot import wilson_interval
from pretrain.models.clip import CLIP

_SCORES = 1 << 26  # similarities held at once
_TRIED = tuple(10.0**power for power in range(-1, 6))
_HELD_OUT = 0.2
_ITERATIONS = 1000


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Two labelled sets: one to fit on frozen features, one to judge by."""

    train: Path
    """Labelled set to fit on, of any kind that classification.images takes."""
    test: Path
    """Labelled set to judge by; its labels are among those of the first."""
    resize: Resize = "shortest_side_crop"
    """As classification.resize."""
    inverse_penalty: float | None = None
    """C of scikit-learn's LogisticRegression (L2); null tries 0.1 to 100,000 by tens on a fifth of
    the training set, held out by class, and fits all of it by the best (the smallest of equals)."""
    neighbours: int = 20
    """Nearest training pictures that vote (DINO, arXiv 2104.14294: 20)."""
    temperature: float = 0.07
    """A neighbour's vote counts exp(cosine / temperature) (DINO: 0.07)."""
    batch_samples: int = 256
    """Pictures per forward on each rank."""

    def __post_init__(self) -> None:
        names = ("inverse_penalty", "neighbours", "temperature", "batch_samples")
        check_positive({f"probe.{name}": getattr(self, name) for name in names})


class Probe:
    """Both sets opened and checked before any model is built."""

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
                f"{self.classes[int(np.argmax(counts == 1))]!r}, a fifth is to be held out: give "
                "two or more of each class, or --probe.inverse_penalty 100"
            )
        if (counts > 0).sum() < 2:
            raise ValueError(f"probe.train={options.train} has one class: a probe needs two")

    def _places(self, labels: list[str]) -> NDArray[np.int64]:
        place = {label: at for at, label in enumerate(self.classes)}
        return np.array([place[label] for label in labels])

    def evaluate(
        self,
        model: CLIP,
        normalisation: Normalisation,
        is_main: bool,
        kept: KeptTokens | None = None,
    ) -> dict[str, Any]:
        """{linear: …, knn: …}, each top1 with its interval; fitted on the main rank alone, for the
        others {}. Collective."""
        known, asked = (
            picture_features(
                model, one, normalisation, self.options.resize, self.options.batch_samples, kept
            )
            for one in (self.train, self.test)
        )
        if not is_main:
            return {}
        labels, truth = self._places(self.train.labels), self._places(self.test.labels)
        penalty = self.options.inverse_penalty
        if penalty is None:
            penalty = _chosen_penalty(known.cpu().numpy(), labels)
        linear = _fitted(known.cpu().numpy(), labels, penalty).predict(asked.cpu().numpy())
        nearest = nearest_class(
            asked,
            known,
            torch.from_numpy(labels).to(known.device),
            classes=len(self.classes),
            neighbours=self.options.neighbours,
            temperature=self.options.temperature,
        )
        return {
            "linear": {**_figures(linear, truth), "inverse_penalty": penalty},
            "knn": {
                **_figures(nearest.cpu().numpy(), truth),
                "neighbours": min(self.options.neighbours, len(known)),
            },
            "classes": len(self.classes),
            "train_pictures": len(labels),
        }


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


def _fitted(features: NDArray[np.float32], labels: NDArray[np.int64], penalty: float) -> Any:
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
            _fitted(features[~held], labels[~held], penalty).predict(features[held]) == labels[held]
        ).mean()
        for penalty in _TRIED
    ]
    return _TRIED[int(np.argmax(right))]


def _figures(found: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, Any]:
    hits = int((found == truth).sum())
    largest = float(np.bincount(truth).max() / len(truth))
    return {
        "top1": hits / len(truth),
        "top1_ci95": wilson_interval(hits, len(truth)),
        "largest_class": largest,
        "n": len(truth),
    }
