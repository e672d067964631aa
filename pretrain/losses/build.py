"""Which objective a recipe's loss options mean."""

from pretrain.losses.contrastive import ContrastiveLoss, LossOptions
from pretrain.losses.objective import Objective


def build_objective(options: LossOptions) -> Objective:
    """The objective with its parameters at their start."""
    return ContrastiveLoss(options)
