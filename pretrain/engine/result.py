"""What a training engine takes and gives back, apart from DeepSpeed: its import takes seconds."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pretrain.base.distributed import mean_over_ranks
from pretrain.losses.objective import LossResult, Objective


class Images(Protocol):
    """A batch of pictures that is asked for by slices: a tensor, or what makes one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tensor:
        """(b, 3, H, W) in the engine's dtype, the same whenever it is asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step measured, averaged over ranks."""

    loss: float
    measures: dict[str, float]
    grad_norm: float  # of the global batch's gradient, before clipping and Muon; nan if skipped or
    # not measured
    skipped: str | None  # why no rank has updated anything; None for a step that was made
    stop: bool = False  # some rank was asked to stop: the same answer on every rank
    ready_s: float = math.nan  # of this rank alone, where measured: until its features were there


def agree(result: LossResult, stop: bool) -> StepResult:
    """What all ranks know of a step after its forward pass. Collective: the one sum of a step
    carries the requests to stop too, so that they cost no collective of their own."""
    loss = result.loss.detach()
    asked = loss.new_full((), float(stop))  # filled on the device: nothing waits for a copy
    means = mean_over_ranks(torch.stack([asked, loss, *result.measures.values()])).tolist()
    asked_anywhere, mean_loss, *measures = means
    return StepResult(
        loss=mean_loss,
        measures=dict(zip(result.measures, measures, strict=True)),
        grad_norm=math.nan,
        skipped=None if math.isfinite(mean_loss) else "the loss is not finite",
        stop=asked_anywhere > 0,
    )


class TrainingEngine(Protocol):
    """What the loop, the log and the checkpoints know of an engine."""

    engine: Any  # DeepSpeed's own
    objective: Objective
    dtype: torch.dtype
    zero_stage: int

    def step(
        self,
        images: Images,
        text_ids: Tensor,
        keep_index: Tensor | None,
        *,
        learning_rate: float,
        objective_learning_rate: float,
        stop: bool = False,
        measure: bool = False,
    ) -> StepResult:
        """One optimizer step on this rank's part of the global batch. Collective."""
        ...

    def full_weights(self) -> dict[str, Tensor]:
        """Every weight, whole, in fp32 on the CPU. Collective."""
        ...

    def averaged_weights(self) -> dict[str, Tensor] | None:
        """The same of their moving average; None where none is kept. Collective."""
        ...

    def training_state(self) -> dict[str, Tensor]:
        """This rank's share of all that a resume needs, by name. Collective."""
        ...

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from all ranks' shares together. Collective."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class Stopwatch:
    """Seconds by the device's own clock: a GPU is told what to do long before it does it. From
    `start` to `stop`; `read` where the work is known to be done, or it waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * self._is_cuda)]
        self._begin = self._end = 0.0

    def start(self) -> None:
        if self._is_cuda:
            self._events[0].record()
        self._begin = time.perf_counter()

    def stop(self) -> None:
        if self._is_cuda:
            self._events[1].record()
        self._end = time.perf_counter()

    def read(self) -> float:
        if self._is_cuda:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._end - self._begin
