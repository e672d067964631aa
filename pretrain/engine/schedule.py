"""The learning rate as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from pretrain.base.checks import check_between
from pretrain.base.decimals import exact


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How the learning rate goes on from its peak to zero."""

    kind: Literal["cosine", "wsd"] = "cosine"
    """cosine (CLIPA): half a cosine. wsd (warmup, stable, decay): the peak, then a decay over the
    last decay_share of the stage."""
    decay_share: float = 0.2
    """wsd: share of the stage's steps in which the rate decays (arXiv 2405.18392: 0.2)."""
    decay: Literal["sqrt", "linear"] = "sqrt"
    """wsd: form of the decay, 1 - sqrt(share of it that is done) or 1 - that share."""

    warmup_from_zero: bool = False
    """A warmup of w steps begins at 0 and is at the peak after them (CLIPA JAX), not at peak / w,
    at the peak with its last step (clipa_torch)."""

    def check(self, option: str, warmup_share: float | None) -> None:
        """ValueError for what cannot be; `option` is the full name of the stage."""
        where = f"{option}.schedule.decay_share"
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"{where}={self.decay_share}: it must be above 0 and at most 1")
        check_between({f"{option}.warmup_share": warmup_share}, 0, 1)
        if self.kind == "wsd" and exact(warmup_share or 0) + exact(self.decay_share) > 1:
            raise ValueError(
                f"{where}={self.decay_share} with {option}.warmup_share={warmup_share}: together "
                "they are more than the stage; lower one of them"
            )

    def decay_steps(self, steps: int) -> int:
        """Steps of a stage in which wsd decays."""
        return max(1, round(exact(self.decay_share) * steps))


def learning_rate(
    *, step: int, steps: int, warmup_steps: int, peak: float, schedule: ScheduleOptions
) -> float:
    """Learning rate of step (0-based) of a stage: linear warmup, then towards 0.

    Warmup reaches the peak at its last step (clipa_torch `cosine_lr`, and its cosine), with
    warmup_from_zero one step later. wsd with the share x of the decay that is done: 1 - sqrt(x),
    the better form in arXiv 2405.18392, or 1 - x.
    """
    if step < warmup_steps:
        return peak * (step + (not schedule.warmup_from_zero)) / warmup_steps
    if schedule.kind == "cosine":
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    decay_steps = schedule.decay_steps(steps)
    done = min(max(step - (steps - decay_steps), 0) / decay_steps, 1.0)
    return peak * (1 - (math.sqrt(done) if schedule.decay == "sqrt" else done))


def peak_learning_rate(base: float, global_batch_samples: int) -> float:
    """CLIPA's scaling rule: base learning rate × global batch / 256."""
    return base * global_batch_samples / 256
