"""Time and memory of the steps since the last reading, on this rank and on all of them."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from pretrain.batches.collate import Batch
from pretrain.engine.options import TrainedIn
from pretrain.plan.flops import count_executed, loss_flops, stage_flops
from pretrain.plan.hardware import GIB, HARDWARE, hardware_of_device
from pretrain.recipe.recipe import Recipe, image_tokens
from pretrain.recipe.stages import Stage

_FIRST_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step of a stage is, over all ranks."""

    batch_samples: int
    tokens_per_sample: int = 0  # image and text, without CLS
    flops_per_sample: float = 0.0  # of the model in training, what is computed twice counted once
    executed_per_sample: float = 0.0  # all that is computed, the loss too
    peak_tflops: float | None = None  # of all ranks together; None where it is not known


@dataclass(frozen=True, kw_only=True)
class RankReading:
    """What one rank tells the others where a step is logged or saved."""

    replaced: dict[str, int]
    replaced_first: dict[str, str]  # by reason, the first since the last reading
    replaced_in_a_row: int
    data_wait_s: float
    ready_s: float  # nan where the step was not measured
    host_memory_gib: float
    device_memory_peak_gib: float | None


def workload(
    recipe: Recipe,
    stage: Stage,
    vocab_size: int,
    *,
    precision: TrainedIn,
    ranks: int,
    device: torch.device,
) -> Workload:
    """A stage's on so many ranks with devices like this one."""
    kept, _ = image_tokens(recipe, stage.options)
    peak = recipe.log.peak_tflops or known_peak_tflops(device, precision)
    return Workload(
        batch_samples=stage.options.global_batch_samples,
        tokens_per_sample=kept + stage.options.tokens.text_tokens,
        flops_per_sample=stage_flops(recipe, stage.options, vocab_size).executed(
            two_passes=False, locked=stage.options.locked
        ),
        executed_per_sample=count_executed(recipe, stage.options, ranks, vocab_size)
        + loss_flops(recipe.model.embed_dim, stage.options.global_batch_samples),
        peak_tflops=None if peak is None else ranks * peak,
    )


def known_peak_tflops(device: torch.device, precision: TrainedIn) -> float | None:
    """Of the accelerator that the device's name says it is, in that precision."""
    if device.type != "cuda":
        return None
    name = hardware_of_device(torch.cuda.get_device_name(device))
    return None if name is None else HARDWARE[name].tflops(precision)


class Meter:
    """The steps of one stage."""

    def __init__(self, work: Workload, device: torch.device) -> None:
        self.work = work
        self.readings = 0
        self._device = device
        self._process = psutil.Process()
        self._ends: list[float] = []  # of the first steps
        self._replaced: dict[str, int] = {}
        self._replaced_first: dict[str, str] = {}
        self._in_a_row = 0
        self.restart()

    def restart(self) -> None:
        """Forget the time since the last reading: it was spent on something else."""
        self._steps, self._wait, self._begin = 0, 0.0, time.perf_counter()

    def waited(self, seconds: float) -> None:
        self._wait += seconds

    def stepped(self, batch: Batch) -> None:
        self._steps += 1
        if len(self._ends) <= _FIRST_STEPS:
            self._ends.append(time.perf_counter())
        for reason, count in batch["replaced"].items():
            self._replaced[reason] = self._replaced.get(reason, 0) + count
        self._replaced_first = {**batch["replaced_first"], **self._replaced_first}
        self._in_a_row = max(self._in_a_row, batch["replaced_in_a_row"])

    def third_step_s(self) -> float | None:
        """Seconds of the third step, right after it: what happens once is over. None else."""
        return self._ends[-1] - self._ends[-2] if len(self._ends) == _FIRST_STEPS else None

    def of_this_rank(self, ready_s: float) -> RankReading:
        """This rank's part of a reading; unusable samples since the last such part.

        ready_s: of the step that was made last, from its batch to its features.
        """
        replaced, self._replaced = self._replaced, {}
        first, self._replaced_first = self._replaced_first, {}
        in_a_row, self._in_a_row = self._in_a_row, 0
        peak = None
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / GIB
            torch.cuda.reset_peak_memory_stats(self._device)
        return RankReading(
            replaced=replaced,
            replaced_first=first,
            replaced_in_a_row=in_a_row,
            data_wait_s=self._wait / max(self._steps, 1),
            ready_s=ready_s,
            host_memory_gib=self._process.memory_info().rss / GIB,
            device_memory_peak_gib=peak,
        )

    def read(self, of_ranks: list[RankReading]) -> dict[str, Any]:
        """Numbers of the steps since the last reading, by the names that the log gives them;
        starts anew.

        step_s is the same on all ranks, as they wait for one another. Who makes them wait is told
        by the time until a rank's features are there, data included, the first moment when it
        needs the others': slowest_rank_ready_s beside the median rank's. data_wait_s is that of
        the rank that waited longest, memory that of the rank that has most.
        """
        self.readings += 1
        steps, work = max(self._steps, 1), self.work
        step_s = (time.perf_counter() - self._begin) / steps
        images_per_s = work.batch_samples / step_s
        tflop_per_s = images_per_s * work.executed_per_sample / 1e12
        of_peak = None if work.peak_tflops is None else images_per_s / 1e12 / work.peak_tflops
        ready = [rank.data_wait_s + rank.ready_s for rank in of_ranks]
        slowest = max(range(len(ready)), key=ready.__getitem__)
        peaks = [peak for one in of_ranks if (peak := one.device_memory_peak_gib) is not None]
        self.restart()
        return {
            "images_per_s": images_per_s,
            "tokens_per_s": images_per_s * work.tokens_per_sample,
            "tflop_per_s": tflop_per_s,
            "mfu": None if of_peak is None else of_peak * work.flops_per_sample,
            "hfu": None if of_peak is None else of_peak * work.executed_per_sample,
            "step_s": step_s,
            "data_wait_s": max(rank.data_wait_s for rank in of_ranks),
            "slowest_rank": slowest,
            "slowest_rank_ready_s": ready[slowest],
            "median_rank_ready_s": statistics.median(ready),
            "device_memory_peak_gib": max(peaks, default=None),
            "host_memory_gib": max(rank.host_memory_gib for rank in of_ranks),
        }
