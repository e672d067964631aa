"""Which objective a recipe's loss options mean."""

from pretrain.losses.objective import Objective
from pretrain.losses.options import LossOptions
from pretrain.losses.sigmoid import SigmoidLoss
from pretrain.losses.softmax import SoftmaxLoss


def build_objective(options: LossOptions) -> Objective:
    """The objective with its parameters at their start."""
    if options.kind == "softmax":
        return SoftmaxLoss(options.softmax)
    return SigmoidLoss(options.sigmoid)
