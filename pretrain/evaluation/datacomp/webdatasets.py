"""Sets in clip-benchmark's layout: NAME/test/*.tar, class names and templates beside them.

Metrics as DataComp's eval_utils has them: wds_eval, wilds_eval, fairness_eval, retr_eval.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.evaluation.classification import Classification, picture_features
from pretrain.evaluation.features import Subject, text_features
from pretrain.evaluation.labelled import open_labelled
from pretrain.evaluation.options import ClassificationOptions
from pretrain.evaluation.retrieval import KS, retrieval
from pretrain.evaluation.zero_shot import nearest_classes, zero_shot

_F1 = "F1-macro_all"
# By main metric, how many of the nearest classes count; groups are the first number of the .npy.
_WORST_GROUP = {"acc_worst_region": 1, "acc_top5_wg": 5, "acc_wg": 1}
# What is retrieved, in clip-benchmark's names, by our direction.
_RETRIEVED = {"text_to_image": "image_retrieval", "image_to_text": "text_retrieval"}


class Measured(NamedTuple):
    """One metric of a set."""

    value: float
    chance: float | None = None


class Classes:
    """A set of classes; its main metric may be one of groups, or F1."""

    def __init__(self, folder: Path, main: str, batch: int) -> None:
        self._main = main
        self._task = Classification(
            ClassificationOptions(
                images=folder / "test",
                classes=folder / "classnames.txt",
                templates=folder / "zeroshot_classification_templates.txt",
                batch_samples=batch,
            )
        )
        metadata = self._task.set.metadata
        self.count = len(self._task.set.labels)
        self._groups = np.zeros(self.count)
        if main in _WORST_GROUP:
            if metadata is None:
                raise ValueError(
                    f"{folder}: {main} needs a .npy beside each picture, whose first number is its "
                    "group; get the set again"
                )
            self._groups = metadata[:, 0]

    def metrics(self, subject: Subject) -> dict[str, Measured]:
        """acc1, acc5 of five classes or more, mean_per_class_recall, and the main metric."""
        images, own, classifier = self._task.compare(subject)
        found, count = zero_shot(images, own, classifier), len(classifier)
        result = {"acc1": Measured(found["top1"], 1 / count)}
        if count >= 5:
            result["acc5"] = Measured(found["top5"], 5 / count)
        result["mean_per_class_recall"] = Measured(found["mean_per_class_recall"], 1 / count)
        nearest, target = nearest_classes(images, classifier).cpu().numpy(), own.cpu().numpy()
        if self._main in _WORST_GROUP:
            hits = (nearest[:, : _WORST_GROUP[self._main]] == target[:, None]).any(axis=1)
            result[self._main] = Measured(worst_group(hits, self._groups))
        elif self._main == _F1:
            from sklearn.metrics import f1_score  # takes a second to import

            seen = np.unique(target)
            value = f1_score(target, nearest[:, 0], average="macro", labels=seen, zero_division=0)
            result[_F1] = Measured(float(value))
        return result


def worst_group(hits: NDArray[np.bool_], groups: NDArray[np.generic]) -> float:
    """The lowest share of hits (n,) among the groups (n,)."""
    return min(float(hits[groups == group].mean()) for group in np.unique(groups))


class Captioned:
    """Pictures with captions, a line each in the picture's .txt; each line is a query."""

    def __init__(self, option: str, folder: Path, batch: int) -> None:
        self._set = open_labelled(option, folder / "test", ".txt")
        self.count, self._batch = len(self._set.labels), batch
        pairs = [
            (row, line) for row, text in enumerate(self._set.labels) for line in text.splitlines()
        ]
        self._texts = [line for _, line in pairs]
        self._matches = torch.tensor([(row, at) for at, (row, _) in enumerate(pairs)])
        if alone := self.count - len({row for row, _ in pairs}):
            raise ValueError(f"{folder}: {alone} pictures have no caption in their .txt")

    def metrics(self, subject: Subject) -> dict[str, Measured]:
        """recall@1, 5 and 10 both ways, and the mean of the two recall@1."""
        images = picture_features(subject, self._set, "shortest_side_crop", self._batch)
        ids = [np.asarray(subject.tokenizer.encode(text)) for text in self._texts]
        texts = text_features(subject.model, ids, self._batch)
        found = retrieval(images, texts, self._matches.to(images.device))
        result = {
            f"{name}_recall@{k}": Measured(found[way][f"r@{k}"], found[way][f"chance_r@{k}"])
            for way, name in _RETRIEVED.items()
            for k in KS
        }
        value, chance = (
            sum(found[way][name] for way in _RETRIEVED) / 2 for name in ("r@1", "chance_r@1")
        )
        return {**result, "mean_recall@1": Measured(value, chance)}
