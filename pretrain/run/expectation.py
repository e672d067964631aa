"""What the plan says of a run before its first step, and whether the run keeps to it."""

from collections import deque
from functools import cached_property
from typing import Any

import psutil

from pretrain.base.distributed import Runtime, ranks_on_node
from pretrain.plan.estimate import StageEstimate, stage_estimate
from pretrain.plan.forecast import forecast, machine_of, shortfalls
from pretrain.plan.hardware import GIB
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import Stage

_JUDGED_STEPS = 20  # a warning is about at least so many steps, the last ones


class Expectation:
    """The plan of a run on the machine that it runs on. Made before the model is."""

    def __init__(
        self, recipe: Recipe, stages: list[Stage], runtime: Runtime, *, vocab_size: int
    ) -> None:
        self._recipe, self._stages, self._vocab_size = recipe, stages, vocab_size
        self._machine, self._is_known = machine_of(
            runtime.device,
            ranks=runtime.world_size,
            nodes=max(1, runtime.world_size // ranks_on_node()),
        )
        self._host_gib = psutil.Process().memory_info().rss / GIB  # what is no part of the plan
        self._seen: deque[dict[str, Any]] = deque(
            maxlen=-(-_JUDGED_STEPS // recipe.log.every_steps)
        )
        self._stage: str | None = None
        self._said: set[tuple[str, str]] = set()

    @cached_property
    def _estimates(self) -> dict[str, StageEstimate]:
        return {
            stage.name: stage_estimate(
                self._recipe, stage, self._machine, vocab_size=self._vocab_size
            )
            for stage in self._stages
        }

    def line(self) -> str:
        """The plan in a line."""
        return forecast(list(self._estimates.values()), self._machine, is_known=self._is_known)

    def judge(self, stage: Stage, reading: dict[str, Any]) -> list[str]:
        """Warnings about a stage that follow from its last readings, each of them once.

        The first reading of a stage is not to be shown: it holds what happens once.
        """
        if stage.name != self._stage:
            self._stage = stage.name
            self._seen.clear()
        self._seen.append(reading)
        if len(self._seen) < (self._seen.maxlen or 1):
            return []
        step_s = sum(one["step_s"] for one in self._seen)
        memory = reading["device_memory_peak_gib"]
        if self._machine.is_cpu:
            # The copy of a rank's weights and moments that a checkpoint is written from.
            parameters = sum(self._estimates[stage.name].parameters.values())
            copy_gib = 12 * parameters / self._machine.ranks / GIB
            memory = reading["host_memory_gib"] - self._host_gib - copy_gib
        found = shortfalls(
            self._recipe,
            self._estimates[stage.name],
            images_per_s=(
                stage.options.global_batch_samples * len(self._seen) / step_s
                if self._is_known
                else None
            ),
            wait_share=sum(one["data_wait_s"] for one in self._seen) / step_s,
            memory_gib=memory,
            is_cpu=self._machine.is_cpu,
        )
        new = {
            about: text for about, text in found.items() if (stage.name, about) not in self._said
        }
        self._said.update((stage.name, about) for about in new)
        return list(new.values())
