"""Compiled towers: torch.compile around each tower's forward, and around nothing of DeepSpeed."""

import torch
from torch._functorch import config as functorch_config

from pretrain.models.clip import CLIP


def compile_towers(model: CLIP, *, memory_budget: float | None) -> None:
    """Compile `model.image.forward` and `model.text.forward`, before DeepSpeed wraps the model: of
    `module.compile()` each hook of DeepSpeed's becomes a frame of its own.

    memory_budget: share of a compiled tower's activations that is kept for the backward pass, None
    for all; the compiler chooses what to compute again, the cheapest first. Compilation waits for
    the first step, so the budget stays until `forget_compiled`.
    """
    functorch_config.activation_memory_budget = 1.0 if memory_budget is None else memory_budget
    for tower in (model.image, model.text):
        tower.forward = torch.compile(  # type: ignore[method-assign]
            tower.forward, dynamic=False, fullgraph=True
        )


def forget_compiled() -> None:
    """Give back compiled code: it holds the weights it was made for."""
    functorch_config.activation_memory_budget = 1.0
    torch.compiler.reset()
