"""The learning rate as a pure function of the step."""

import math


def learning_rate(*, step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of step (0-based) of a stage: linear warmup, then cosine to 0.

    Source: CLIPA's recipes (clipa_torch `cosine_lr`): warmup reaches the peak at its last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def peak_learning_rate(base: float, global_batch_samples: int) -> float:
    """CLIPA's scaling rule: base learning rate × global batch / 256."""
    return base * global_batch_samples / 256
