"""Seconds of work by the device's own clock: a GPU is told what to do long before it does it."""

import time

import torch


class Stopwatch:
    """From `start` to `stop`; `read` where the work is known to be done, or it waits for it."""

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
