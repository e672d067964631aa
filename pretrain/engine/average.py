"""The exponential moving average of the weights, beside the fp32 masters of this rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pretrain.engine.state import flat_masters


class WeightAverage:
    """One fp32 tensor like each flat partition of masters, on its device: as large as one moment.

    After update t of the stage, average = d average + (1 - d) masters with
    d = min(decay, (1 + t) / (10 + t)): the ramp of TensorFlow's tf.train.ExponentialMovingAverage
    with num_updates. It starts from the weights that the stage starts from.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        """`engine` is DeepSpeed's, with the stage's first weights in its masters."""
        self.updates, self._decay = 0, decay
        self.of_masters = {flat: flat.detach().clone() for flat in flat_masters(engine)}

    @torch.no_grad()
    def update(self) -> None:
        """Take in an update that was made; a launch for all tensors, and nothing to wait for."""
        self.updates += 1
        share = 1 - min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([*self.of_masters.values()], [*self.of_masters], share)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The masters hold the average meanwhile, and afterwards the same bits as before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for flat, average in self.of_masters.items():
            before: Tensor = flat.detach().clone()
            flat.copy_(average)
            average.copy_(before)
