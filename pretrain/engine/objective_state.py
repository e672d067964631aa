"""The objective's part of the training state by parameter name."""

from collections.abc import Mapping

from torch import Tensor

from pretrain.engine.state import ADAM, WEIGHT
from pretrain.losses.objective import Objective


def read_objective(objective: Objective) -> dict[str, Tensor]:
    """The objective's parameters and moments in host memory: `objective/KIND/NAME` -> tensor."""
    state = objective.training_state()
    found = {f"objective/{WEIGHT}/{name}": value for name, value in state["parameters"].items()}
    names = [name for name, _ in objective.named_parameters()]
    for index, moments in state["optimizer"]["state"].items():
        for kind, value in moments.items():
            found[f"objective/{kind}/{names[index]}"] = value
    return {key: value.detach().to("cpu", copy=True) for key, value in found.items()}


def load_objective(objective: Objective, tensors: Mapping[str, Tensor]) -> None:
    """Give the objective what `read_objective` gave."""
    state = objective.training_state()
    state["parameters"] = {
        name: tensors[f"objective/{WEIGHT}/{name}"] for name in state["parameters"]
    }
    state["optimizer"]["state"] = {
        index: {kind: tensors[f"objective/{kind}/{name}"] for kind in (*ADAM, "step")}
        for index, (name, _) in enumerate(objective.named_parameters())
        if f"objective/step/{name}" in tensors  # absent before the first step that was made
    }
    objective.load_training_state(state)
