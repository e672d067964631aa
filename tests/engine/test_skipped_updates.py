"""Where a gradient or the loss is not finite on one rank, no rank updates anything, and training
goes on: in every ZeRO stage, optimizer, precision and number of passes."""

from typing import Any

import pytest
import torch
from engine_cases import Case, build_engine, one_step, train_in_float64
from ranks import run_ranks

# Every pair of stage, optimizer and precision, with one and two passes in turn.
CASES = [
    Case(
        zero=zero,
        kind=kind,
        precision=precision,
        chunks=(1, 4)[(int(zero) + (kind == "muon") + (precision == "bf16")) % 2],
        learning_rate=2e-4,
    )
    for zero in ("1", "2", "3")
    for kind in ("adamw", "muon")
    for precision in ("fp32", "bf16")
]


def everything(engine: Any) -> list[torch.Tensor]:
    """Copies of all that an update changes: weights, moments, the objective with its moments."""
    objective = engine.objective.training_state()
    moments = [
        *engine.engine.optimizer.optimizer.state.values(),
        *objective["optimizer"]["state"].values(),
    ]
    tensors = [*engine.full_weights().values(), *objective["parameters"].values()]
    tensors += [torch.as_tensor(v) for state in moments for v in state.values()]
    return [tensor.detach().clone() for tensor in tensors]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def faults_on_a_rank(rank: int, cases: list[Case]):
    """{case: (reasons of the two faulty steps, unchanged after each, last step, moved by it)}"""
    found = {}
    for case in cases:
        engine = build_engine(case)
        poison = False

        def poisoned(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.nan if poison and rank == 1 else gradient  # noqa: B023

        matrix = engine.engine.module.image.vit.blocks[1].mlp.fc1.weight
        matrix.register_hook(poisoned)
        one_step(engine, case, 0)
        at_first = everything(engine)
        assert len(at_first) > 2 * len(engine.objective.training_state())
        poison = True
        gradient = one_step(engine, case, 1)
        after_gradient = everything(engine)
        poison = False
        loss = one_step(engine, case, 1, poison_images=rank == 1)
        after_loss = everything(engine)
        last = one_step(engine, case, 1)
        found[case] = (
            (gradient.skipped, loss.skipped),
            (same(at_first, after_gradient), same(at_first, after_loss)),
            last,
            not same(at_first, everything(engine)),
        )
        engine.close()
    return found


@pytest.mark.parametrize("cases", [CASES[::3], pytest.param(CASES, marks=pytest.mark.soak)])
def test_nothing_is_updated_and_training_goes_on(cases):
    judges = {
        kind: train_in_float64(Case(kind=kind, learning_rate=2e-4)) for kind in ("adamw", "muon")
    }
    for rank, found in enumerate(run_ranks(faults_on_a_rank, 2, cases)):
        for case, (reasons, unchanged, last, moved) in found.items():
            label = f"rank {rank}, {case}"
            assert reasons == ("the gradient is not finite", "the loss is not finite"), label
            assert unchanged == (True, True), f"{label}: unchanged after each fault: {unchanged}"
            assert last.skipped is None and moved, f"{label}: {last}"
            # What a skipped step's backward pass left behind would add to the next gradient.
            judge = judges[case.kind]
            worst = abs(last.grad_norm / judge.norms[1] - 1)
            assert worst < (1e-3 if case.precision == "fp32" else 2e-2), f"{label}: norm {worst}"
            worst = abs(last.loss - judge.losses[1])
            assert worst < (2e-4 if case.precision == "fp32" else 2e-2), f"{label}: loss {worst}"
