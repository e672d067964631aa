"""What the plan says that ranks send is what they send."""

from collections import Counter
from typing import Any

import pytest
import torch
from engine_cases import GLOBAL_BATCH, Case, build_engine, one_step
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.plan.communication import step_bytes
from pretrain.plan.memory import ZeroLayout

RANKS = 2
# A ring sends so many times (N - 1) / N of the whole tensor.
ROUNDS = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1, "allgather_": 1}


class Sent(TorchDispatchMode):
    """Bytes by collective and type while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        library, _, name = function._schema.name.partition("::")
        if library == "c10d":
            largest = max(
                (t for t in tree_leaves(args) if isinstance(t, torch.Tensor)), key=torch.numel
            )
            self.bytes[name, largest.dtype] += largest.nbytes
        return function(*args, **(kwargs or {}))


def sent_on_a_rank(rank: int, cases: list[Case]) -> list[tuple[int, Counter[Any]]]:
    found = []
    for case in cases:
        engine = build_engine(case)
        for batch in range(2):
            one_step(engine, case, batch)
        with Sent() as sent:
            one_step(engine, case, 2)
        parameters = engine.engine.module.parameters()
        count = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        engine.close()
        found.append((count, sent.bytes))
    return found


def test_bytes_between_ranks_are_those_that_a_step_sends():
    calm = {"precision": "bf16", "learning_rate": 5e-5, "eps": 1e-2}
    cases = [
        Case(zero="1", **calm),
        Case(zero="1", reduce_dtype="fp32", **calm),
        Case(zero="2", chunks=2, **calm),
        Case(zero="3", **calm),
    ]
    for case, (parameters, sent) in zip(
        cases, run_ranks(sent_on_a_rank, RANKS, cases)[0], strict=True
    ):
        planned = step_bytes(
            ZeroLayout(stage=int(case.zero)),
            parameters=parameters,
            weight_bytes=2,
            gradient_bytes=4 if case.reduce_dtype == "fp32" else 2,
            embed_dim=16,
            agreed=3,
            global_batch=GLOBAL_BATCH,
            ranks=RANKS,
            passes=case.chunks,
        )
        if case.zero == "3":  # it never parts with weights as small as these
            del sent["_allgather_base_", torch.bfloat16], planned["weights gathered"]
        share = (RANKS - 1) / RANKS
        ours = sum(share * ROUNDS[name] * count for (name, _), count in sent.items())
        # Padding of partitions, the agreed loss, and single numbers.
        assert ours == pytest.approx(sum(planned.values()), rel=0.06), f"{case}: {sent}, {planned}"
