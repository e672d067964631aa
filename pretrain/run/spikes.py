"""Loss spikes: a loss far above what it has been lately is named. Nothing is rolled back."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from pretrain.checks import check_positive


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


class SpikeWatch:
    """The losses of one stage."""

    def __init__(self, options: SpikeOptions | None) -> None:
        self._options = options
        self._losses: deque[float] = deque(maxlen=1 if options is None else options.window_logs)
        self._high = 0

    def see(self, loss: float) -> float | None:
        """The running median at the moment when losses above it make a spike: once a spike."""
        options = self._options
        if options is None or not math.isfinite(loss):
            return None
        usual = median(self._losses) if len(self._losses) == options.window_logs else math.inf
        self._high = self._high + 1 if loss > options.factor * usual else 0
        self._losses.append(loss)
        return usual if self._high == options.logs_in_a_row else None
