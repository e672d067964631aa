"""The moving average of the weights is the sum that its formula says, in every layout of the
masters; a step that is skipped leaves it, and a checkpoint keeps every bit of it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engine_cases import Case, build_engine, one_step, save_whole
from ranks import run_ranks
from torch import Tensor

STEPS = 5
DECAY = 0.38  # (1 + t) / (10 + t) is below it for four steps and above it at the fifth
CASES = [
    Case(zero="1", precision="bf16", ema=DECAY),
    Case(zero="2_offload", ema=DECAY, locked="text"),
    Case(zero="3", kind="muon", precision="bf16", ema=DECAY),
]
NEXT = {"1": "3", "2_offload": "1", "3": "2"}  # where each goes on before its last step


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def average_on_a_rank(rank: int, folder: Path) -> dict[Case, Any]:
    """{case: (weights before and after each update, their average, what must stay bitwise)}"""
    from pretrain.run import checkpoint
    from pretrain.run.record import RunState

    found = {}
    for case in CASES:
        engine, of_case = build_engine(case), folder / case.zero
        history, state = [engine.full_weights()], RunState(step=STEPS - 1)
        stays = {"the first weights": same(engine.averaged_weights(), history[0])}
        for step in range(STEPS - 1):
            one_step(engine, case, step)
            history.append(engine.full_weights())
        average = engine.averaged_weights()
        stays["the masters"] = same(engine.full_weights(), history[-1])
        assert one_step(engine, case, STEPS, poison_images=rank == 1).skipped
        stays["a skipped step"] = same(engine.averaged_weights(), average)
        save_whole(engine, of_case, state)
        engine.close()
        other = build_engine(replace(case, zero=NEXT[case.zero]), disturb=True)
        checkpoint.load(other, of_case, state.tag, late_files_s=0)
        stays["a checkpoint"] = same(other.averaged_weights(), average)
        one_step(other, case, STEPS - 1)
        history.append(other.full_weights())
        found[case] = (history, other.averaged_weights(), stays)
        other.close()
    return found


def test_the_average_is_its_sum_over_all_steps_and_outlives_them(tmp_path):
    decays = [1.0, *(min(DECAY, (1 + t) / (10 + t)) for t in range(1, STEPS + 1))]
    shares = [(1 - decays[t] if t else 1) * math.prod(decays[t + 1 :]) for t in range(STEPS + 1)]
    assert math.isclose(sum(shares), 1) and decays[-1] == DECAY not in decays[:-1]
    for rank, found in enumerate(run_ranks(average_on_a_rank, 2, tmp_path)):
        for case, (history, average, stays) in found.items():
            assert all(stays.values()), f"rank {rank}, {case}: {stays}"
            moved = worst = 0.0
            for name, ours in average.items():
                each = [weights[name].double() for weights in history]
                wanted = sum(share * one for share, one in zip(shares, each, strict=True))
                worst = max(worst, float((ours.double() - wanted).abs().max()))
                moved = max(moved, float((each[-1] - wanted).abs().max()))
            assert worst < 3e-7, f"rank {rank}, {case}: {worst}"
            assert moved > 1e-4, f"rank {rank}, {case}: the average is the last weights: {moved}"
            print(f"rank {rank}, {case}: largest difference {worst:.1e} of {moved:.1e}")
