"""Options of what surrounds training: checkpoints, the log, trackers, spikes, the watchdog."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pretrain.base.checks import check_between, check_positive

TrackerName = Literal["wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class SpikeOptions:
    """When a loss counts as a spike; it is looked at where it is logged."""

    factor: float = 2.0
    """A loss above this times the running median is high."""
    window_logs: int = 50
    """Logged losses that the median is of; nothing is judged by fewer."""
    logs_in_a_row: int = 3
    """High losses in a row that make a spike."""

    def __post_init__(self) -> None:
        check_positive(
            {
                "log.spikes.window_logs": self.window_logs,
                "log.spikes.logs_in_a_row": self.logs_in_a_row,
            }
        )
        if not self.factor > 1:
            raise ValueError(f"log.spikes.factor={self.factor}: it must be above 1")


@dataclass(frozen=True, kw_only=True)
class WatchdogOptions:
    """When a run that stands still is ended, with code 124."""

    timeout_s: float | None = 1800.0
    """Seconds without a step, a part of an evaluation or a save after which each rank writes its
    stacks into run_dir/stacks and ends; null waits for ever."""

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(
                f"watchdog.timeout_s={self.timeout_s}: a positive number of seconds, or null"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What is written for a resume, and when."""

    every_steps: int | None = 1000
    """Steps between checkpoints; one is always written at the end of a stage. None: no more."""
    every_minutes: float | None = None
    """Minutes after a checkpoint when one is due too, by the main rank's clock."""
    keep: int = 2
    """Newest checkpoints kept; older ones are removed."""
    keep_every_steps: int | None = None
    """The first checkpoint at or past each multiple of so many steps of the job is never removed.
    None: none is kept for ever."""
    late_files_s: float = 60.0
    """How long a rank waits for files of a checkpoint, or a stage's weights, that a network disk
    does not show yet."""

    def __post_init__(self) -> None:
        check_positive(
            {
                "checkpoint.every_steps": self.every_steps,
                "checkpoint.every_minutes": self.every_minutes,
                "checkpoint.keep": self.keep,
                "checkpoint.keep_every_steps": self.keep_every_steps,
            }
        )
        check_between({"checkpoint.late_files_s": self.late_files_s}, 0, math.inf)


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is written for people."""

    every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Mirror metrics.jsonl into TensorBoard events."""
    tracker: TrackerName | None = None
    """Mirror metrics.jsonl to a tracker too: wandb or trackio, which are installed apart."""
    project: str = "pretrain"
    """The tracker's project."""
    spikes: SpikeOptions | None = field(default_factory=SpikeOptions)
    """When a loss counts as a spike and is reported with its samples. Null: never."""
    peak_tflops: float | None = None
    """Peak of one rank's device, which `mfu` and `hfu` are shares of; null takes the plan's table
    by the device's name, and logs neither for one that it does not list, as for a CPU."""

    profile_steps: tuple[int, int] | None = None
    """First and last step, counted as the log does, of a torch.profiler trace: RUN/profile/*.json,
    for chrome://tracing or ui.perfetto.dev. These steps are slower."""

    def __post_init__(self) -> None:
        if (
            self.profile_steps is not None
            and not 1 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"log.profile_steps={list(self.profile_steps)}: first and last step, from 1 on"
            )
        check_positive({"log.every_steps": self.every_steps, "log.peak_tflops": self.peak_tflops})
