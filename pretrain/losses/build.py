"""Which objective a recipe's loss options mean."""

from collections.abc import Sequence

import torch

from pretrain.dataset.captions import Recaption, count_ids
from pretrain.dataset.reader import Dataset
from pretrain.losses.classification import CaptionClassifier
from pretrain.losses.objective import Objective
from pretrain.losses.options import LossOptions
from pretrain.losses.sigmoid import SigmoidLoss
from pretrain.losses.softmax import SoftmaxLoss
from pretrain.models.clip import CLIP


def build_objective(options: LossOptions) -> Objective:
    """The objective with its parameters at their start."""
    objective: Objective
    if options.kind == "softmax":
        objective = SoftmaxLoss(options.softmax)
    else:
        objective = SigmoidLoss(options.sigmoid)
    objective.classification_weight = options.classification_weight
    return objective


def add_classifier(
    options: LossOptions, model: CLIP, dataset: Dataset, recaptions: Sequence[Recaption]
) -> None:
    """Give a model what the loss trains beside it, if anything: random by torch's generator."""
    if options.classification_weight is None:
        return
    counts, captions = count_ids(dataset.directory, dataset.manifest, recaptions)
    classifier = CaptionClassifier(
        model, counts=torch.from_numpy(counts.astype("int64")), captions=captions
    )
    model.classifier = classifier.to(model.device)
