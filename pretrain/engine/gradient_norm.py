"""The gradient's own norm under Muon, where DeepSpeed reports that of the orthogonal update.

DeepSpeed 0.19.8 orthogonalises a matrix's gradient before it takes the norm (ZeRO 1 and 2 while
they cut their partition, ZeRO 3 in the step), except in bf16 at ZeRO 1. Here the norm is taken
before, from the same partitions, so that `grad_norm` means one thing everywhere.
"""

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm
from deepspeed.runtime.zero.muon import original_muon
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from pretrain.distributed import sum_over_ranks


class GradientNorm:
    """Watches the steps of a DeepSpeed engine that trains with Muon."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._square: dict[int, torch.Tensor] = {}  # of this rank's part, by parameter group
        self._norm: torch.Tensor | None = None
        optimizer = engine.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            return
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            self._wrap_stage_3(optimizer)
        else:
            self._wrap_stages_1_and_2(optimizer)

    def read(self) -> float:
        """Norm of the gradient of the last step that was made."""
        return float(self.engine.get_global_grad_norm() if self._norm is None else self._norm)

    def _wrap_stages_1_and_2(self, optimizer: Any) -> None:
        cut, take_norm = optimizer.get_flat_partition, optimizer.scaled_global_norm

        def watched_cut(tensors: list[torch.Tensor], *arguments: Any, **named: Any) -> Any:
            if tensors and optimizer._is_muon_group(tensors):
                update = original_muon.muon_update
                # DeepSpeed looks this name up at each call: once with the gradient as it is.
                original_muon.muon_update = lambda gradient, *_, **__: gradient
                try:
                    parts = cut(tensors, *arguments, **{**named, "return_tensor_list": True})
                finally:
                    original_muon.muon_update = update
                square = torch.stack([part.float().square().sum() for part in parts]).sum()
                self._square[named["param_group_idx"]] = square
            return cut(tensors, *arguments, **named)

        def watched_norm(*arguments: Any, **named: Any) -> Any:
            norms = []
            for group, parameters in enumerate(optimizer.params_in_partition):
                if optimizer._is_muon_group(optimizer.bit16_groups[group]):
                    own = self._square.pop(group, torch.zeros((), device=optimizer.device))
                    norms.append(sum_over_ranks(own[None])[0].sqrt())
                else:
                    gradients = optimizer.averaged_gradients[group]
                    norms.append(optimizer.get_grad_norm_direct(gradients, parameters))
            self._norm = combine_grad_norm_groups(norms)
            return take_norm(*arguments, **named)

        optimizer.get_flat_partition, optimizer.scaled_global_norm = watched_cut, watched_norm

    def _wrap_stage_3(self, optimizer: Any) -> None:
        orthogonalise = optimizer._apply_muon_to_accumulated_grads

        def watched() -> None:
            self._norm = combine_grad_norm_groups(optimizer._get_norm_groups())
            # Where it is not finite, DeepSpeed skips the update, but only after the momentum of
            # every finite matrix has taken the gradient in: it would be a step on its own.
            if not is_invalid_grad_norm(self._norm):
                orthogonalise()

        optimizer._apply_muon_to_accumulated_grads = watched
