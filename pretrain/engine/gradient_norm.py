"""The gradient's own norm, whole and by tower, out of DeepSpeed's partitions.

Under Muon DeepSpeed 0.19.8 orthogonalises a matrix's gradient before it takes the norm (ZeRO 1 and
2 while they cut their partition, ZeRO 3 in the step), except in bf16 at ZeRO 1. Here the norm is
taken before, from the same partitions, so that `grad_norm` means one thing everywhere.

DeepSpeed knows no towers, so that their shares are summed here, over the same pieces, at the moment
when it takes its own norm: two numbers a rank, and only in the steps that ask for them.
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

TOWERS = ("image", "text")


class GradientNorm:
    """Watches the steps of a DeepSpeed engine."""

    def __init__(self, engine: Any, *, is_muon: bool) -> None:
        self.engine = engine
        self.by_tower = False  # whether the next step's norm is wanted by tower too
        self._tower = {
            id(parameter): TOWERS.index(name.split(".")[0].split("_")[0])
            for name, parameter in engine.module.named_parameters()
        }
        self._muon: dict[int, list[tuple[Tensor, Tensor]]] = {}  # pieces by parameter group
        self._norm: Tensor | None = None
        self._towers: Tensor | None = None
        optimizer = engine.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            self._wrap_bf16_stage_1(optimizer)
        elif not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            self._wrap_stages_1_and_2(optimizer, is_muon)
        elif is_muon:
            self._wrap_stage_3_muon(optimizer)
        else:
            self._wrap_stage_3(optimizer)

    def read(self) -> float:
        """Norm of the gradient of the last step that was made."""
        return float(self.engine.get_global_grad_norm() if self._norm is None else self._norm)

    def read_towers(self) -> dict[str, float]:
        """The same by tower, each with its projection; nothing where it was not asked for. The
        squares of all are the square of the whole."""
        towers, self._towers = self._towers, None
        return {} if towers is None else dict(zip(TOWERS, towers.tolist(), strict=True))

    def _keep(self, pieces: Iterable[tuple[Tensor, Tensor]], *, is_whole: bool = False) -> None:
        """Norms by tower of (parameter, square of this rank's piece of its gradient); is_whole:
        every rank has all pieces. Collective."""
        squares = next(self.engine.module.parameters()).new_zeros(2, dtype=torch.float32)
        for parameter, square in pieces:
            squares[self._tower[id(parameter)]] += square.to(squares.device)
        self._towers = (squares if is_whole else sum_over_ranks(squares)).sqrt()

    def _wrap_bf16_stage_1(self, optimizer: BF16_Optimizer) -> None:
        take = optimizer.get_grads_for_norm

        def watched(for_clipping: bool = False) -> Any:
            if self.by_tower and not for_clipping:
                self._keep(
                    (
                        (parameter, _square(gradient))
                        for group, gradients in zip(
                            optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True
                        )
                        for parameter, gradient in zip(group, gradients, strict=True)
                    ),
                    is_whole=True,
                )
            return take(for_clipping)

        optimizer.get_grads_for_norm = watched

    def _wrap_stages_1_and_2(self, optimizer: Any, is_muon: bool) -> None:
        cut, take_norm = optimizer.get_flat_partition, optimizer.scaled_global_norm

        def watched_cut(tensors: list[Tensor], *arguments: Any, **named: Any) -> Any:
            if tensors and optimizer._is_muon_group(tensors):
                update = original_muon.muon_update
                # DeepSpeed looks this name up at each call: once with the gradient as it is.
                original_muon.muon_update = lambda gradient, *_, **__: gradient
                try:
                    parts = cut(tensors, *arguments, **{**named, "return_tensor_list": True})
                finally:
                    original_muon.muon_update = update
                squares = [_square(part) for part in _without_padding(parts)]
                self._muon[named["param_group_idx"]] = list(zip(tensors, squares, strict=True))
            return cut(tensors, *arguments, **named)

        def watched_norm(*arguments: Any, **named: Any) -> Any:
            if self.by_tower:
                self._keep(
                    piece
                    for group in range(len(optimizer.bit16_groups))
                    for piece in self._muon.get(group) or _pieces(optimizer, group)
                )
            if is_muon:
                self._norm = self._norm_under_muon(optimizer)
            return take_norm(*arguments, **named)

        if is_muon:
            optimizer.get_flat_partition = watched_cut
        optimizer.scaled_global_norm = watched_norm

    def _norm_under_muon(self, optimizer: Any) -> Tensor:
        norms = []
        for group, parameters in enumerate(optimizer.params_in_partition):
            if optimizer._is_muon_group(optimizer.bit16_groups[group]):
                squares = [square for _, square in self._muon.pop(group, [])]
                squares = squares or [torch.zeros((), device=optimizer.device)]
                norms.append(sum_over_ranks(torch.stack(squares).sum()[None])[0].sqrt())
            else:
                gradients = optimizer.averaged_gradients[group]
                norms.append(optimizer.get_grad_norm_direct(gradients, parameters))
        return combine_grad_norm_groups(norms)

    def _wrap_stage_3(self, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
        take_norms = optimizer._get_norm_groups

        def watched() -> Any:
            self._keep_stage_3(optimizer)
            return take_norms()

        optimizer._get_norm_groups = watched

    def _wrap_stage_3_muon(self, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
        orthogonalise = optimizer._apply_muon_to_accumulated_grads

        def watched() -> None:
            self._keep_stage_3(optimizer)
            self._norm = combine_grad_norm_groups(optimizer._get_norm_groups())
            # Where it is not finite, DeepSpeed skips the update, but only after the momentum of
            # every finite matrix has taken the gradient in: it would be a step on its own.
            if not is_invalid_grad_norm(self._norm):
                orthogonalise()

        optimizer._apply_muon_to_accumulated_grads = watched

    def _keep_stage_3(self, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
        if self.by_tower:
            groups = range(len(optimizer.fp16_groups))
            self._keep(piece for group in groups for piece in _pieces(optimizer, group))


def _pieces(optimizer: Any, group: int) -> Iterable[tuple[Tensor, Tensor]]:
    """(parameter, square of this rank's piece of its gradient) of a group under ZeRO 1 to 3."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        parameters, offloads = optimizer.fp16_groups[group], optimizer.offload_optimizer
    else:
        parameters, offloads = optimizer.params_in_partition[group], optimizer.cpu_offload
    if offloads:  # the gradients have gone; DeepSpeed has kept their norms
        norms = optimizer.norm_for_param_grads
        return [
            (parameter, torch.as_tensor(norms[key]).float().square())
            for parameter in parameters
            if (key := optimizer.get_param_id(parameter)) in norms
        ]
    gradients = _without_padding(optimizer.averaged_gradients[group])
    return [(p, _square(g)) for p, g in zip(parameters, gradients, strict=False)]


def _without_padding(parts: Iterable[Tensor]) -> list[Tensor]:
    return [part for part in parts if not getattr(part, "_zero_padding", False)]


def _square(gradient: Tensor) -> Tensor:
    return gradient.detach().float().square().sum()
