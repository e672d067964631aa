"""A trace of some steps: what the host and the device do in each of them, by torch's profiler."""

from pathlib import Path
from typing import Any

import torch

from pretrain.base.files import aside
from pretrain.base.run_files import PROFILE


class Profile:
    """Steps first to last of a job, counted from 1 as the log does, into RUN/profile/."""

    def __init__(
        self, steps: tuple[int, int] | None, run_dir: Path, device: torch.device, *, is_main: bool
    ) -> None:
        """Only the main rank traces: one file of tens of megabytes is enough to look at."""
        self._steps = steps if is_main else None
        self._folder, self._device = run_dir / PROFILE, device
        self._running: Any = None

    def reach(self, step: int) -> None:
        """The job comes to this step: the trace begins or ends where it is to. A job that goes on
        in the middle of the steps traces the rest of them."""
        if self._steps is None:
            return
        first, last = self._steps
        if self._running is None and first <= step <= last:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._running = torch.profiler.profile(activities=activities)
            self._running.start()
        elif step > last:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is being made: whole or not at all."""
        if self._running is None or self._steps is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the last step's kernels may still be running
        self._running.stop()
        path = self._folder / f"steps_{self._steps[0]}-{self._steps[1]}.json"
        with aside(path) as file:
            self._running.export_chrome_trace(str(file.name))
        self._running = self._steps = None
