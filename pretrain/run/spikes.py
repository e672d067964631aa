"""Loss spikes: a loss far above what it has been lately is named. Nothing is rolled back."""

import math
from collections import deque
from statistics import median

from pretrain.recipe.run_options import SpikeOptions


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
