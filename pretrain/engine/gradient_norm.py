"""The norm of the global batch's gradient, before clipping and before Muon.

DeepSpeed 0.19.8 takes a norm in every step, and that is the one told here. Only under Muon it
orthogonalises the matrices first (ZeRO 1 and 2 while they cut their partition, ZeRO 3 in the step),
except in bf16 at ZeRO 1. There the norm is taken before, from the same partitions, so that
`grad_norm` means one thing everywhere.
"""

from collections.abc import Iterable
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm
from deepspeed.runtime.zero.muon import original_muon
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from pretrain.base.distributed import sum_over_ranks


class GradientNorm:
    """Reads the norm of a DeepSpeed engine's steps."""

    def __init__(self, engine: Any, *, is_muon: bool) -> None:
        self.engine = engine
        self._norm: Tensor | None = None  # where DeepSpeed's own is another
        optimizer = engine.optimizer
        if not is_muon or isinstance(optimizer, BF16_Optimizer):
            return
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            self._watch_stage_3(optimizer)
        else:
            self._watch_stages_1_and_2(optimizer)

    def read(self) -> float:
        """Norm of the gradient of the last step that was made. The host waits for it."""
        return float(self.engine.get_global_grad_norm() if self._norm is None else self._norm)

    def _watch_stages_1_and_2(self, optimizer: Any) -> None:
        cut, take_norm = optimizer.get_flat_partition, optimizer.scaled_global_norm
        squares: dict[int, Tensor] = {}  # of this rank's part of Muon's matrices, by group

        def watched_cut(tensors: list[Tensor], *arguments: Any, **named: Any) -> Any:
            if tensors and optimizer._is_muon_group(tensors):
                update = original_muon.muon_update
                # DeepSpeed looks this name up at each call: once with the gradient as it is.
                original_muon.muon_update = lambda gradient, *_, **__: gradient
                try:
                    parts = cut(tensors, *arguments, **{**named, "return_tensor_list": True})
                finally:
                    original_muon.muon_update = update
                squares[named["param_group_idx"]] = _square(parts)
            return cut(tensors, *arguments, **named)

        def watched_norm(*arguments: Any, **named: Any) -> Any:
            of_groups = [
                squares.pop(group) if group in squares else _square(parts)
                for group, parts in optimizer.averaged_gradients.items()
            ]
            self._norm = sum_over_ranks(torch.stack(of_groups).sum()).sqrt()
            return take_norm(*arguments, **named)

        optimizer.get_flat_partition = watched_cut
        optimizer.scaled_global_norm = watched_norm

    def _watch_stage_3(self, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
        orthogonalise = optimizer._apply_muon_to_accumulated_grads

        def watched() -> None:
            self._norm = combine_grad_norm_groups(optimizer._get_norm_groups())
            # Where it is not finite, DeepSpeed skips the update, but only after the momentum of
            # every finite matrix has taken the gradient in: it would be a step on its own.
            if not is_invalid_grad_norm(self._norm):
                orthogonalise()

        optimizer._apply_muon_to_accumulated_grads = watched


def _square(parts: Iterable[Tensor]) -> Tensor:
    """Sum of squares, in fp32; padding is zero."""
    return torch.stack([part.detach().float().square().sum() for part in parts]).sum()
