"""Muon's rule written out, for judges."""

import torch
from torch import Tensor


class MuonRule:
    """Muon on float64 matrices (Keller Jordan, kellerjordan.github.io/posts/muon): Nesterov
    momentum, five Newton-Schulz steps, scale sqrt(max(1, rows / columns)), decoupled decay."""

    def __init__(
        self, matrices: list[Tensor], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        self.matrices, self.lr, self.momentum = matrices, lr, momentum
        self.weight_decay = weight_decay
        self.average = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self) -> None:
        for matrix, average in zip(self.matrices, self.average, strict=True):
            gradient = matrix.grad
            average.mul_(self.momentum).add_((1 - self.momentum) * gradient)
            x = self.momentum * average + (1 - self.momentum) * gradient
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.mul_(1 - self.lr * self.weight_decay).sub_(self.lr * scale * x)
