"""A locked tower stays bitwise what it was, costs no optimizer state and no activations, and is in
every checkpoint. (That the rest trains as one float64 process: test_distributed_training.)"""

from pathlib import Path

import pytest
import torch
from engine_cases import (
    Case,
    build_engine,
    one_step,
    save_whole,
    small_clip,
    training,
    training_batch,
)
from ranks import run_ranks
from tiny_runs import ROOT

from pretrain.recipe.parsing import parse

CASES = [
    Case(zero="1", locked="image"),
    Case(zero="2", locked="text", precision="bf16", chunks=4),
    Case(zero="3", locked="image", precision="bf16", chunks=4),
]


def locked_on_a_rank(rank: int, folder: Path):
    """{case: (weights, names in this rank's checkpoint, tensors that the tower keeps, weights of a
    resume into an engine that began with others)}"""
    from pretrain.run import checkpoint
    from pretrain.run.record import RunState

    found = {}
    for case in CASES:
        engine = build_engine(case)
        weights = training(engine, case, range(2)).weights
        kept = saved_by_the_tower(engine, case)
        state, of_case = RunState(step=2), folder / str(case)
        save_whole(engine, of_case, state)
        names = set(engine.training_state())
        expected = one_step(engine, case, 3).loss
        engine.close()
        resumed = build_engine(case, disturb=True)
        checkpoint.load(resumed, of_case, state.tag, late_files_s=0)
        again = resumed.full_weights()
        loss = one_step(resumed, case, 3).loss
        resumed.close()
        found[case] = (weights, names, kept, again, (loss, expected))
    return found


def saved_by_the_tower(engine, case: Case) -> int:
    """Tensors that autograd keeps in the tower's forward. Two samples: `forward` alone."""
    tower = engine.engine.module.get_submodule(case.locked)
    images, texts, keep = (t[:2] for t in training_batch(0))
    counts = []

    def before(*_):
        hooks = torch.autograd.graph.saved_tensors_hooks(counts.append, lambda x: x)
        hooks.__enter__()
        tower.open_hooks = hooks

    handles = [
        tower.register_forward_pre_hook(before),
        tower.register_forward_hook(lambda *_: tower.open_hooks.__exit__()),
    ]
    features = engine.engine(images.to(engine.dtype), texts, keep)
    assert all(feature.requires_grad for feature in features)  # by the projections
    for handle in handles:
        handle.remove()
    return len(counts)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(locked_on_a_rank, 2, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_locked_tower_stays_bitwise_and_is_in_the_checkpoint(ranks, case):
    start = dict(small_clip().named_parameters())
    locked = {name for name in start if name.startswith(f"{case.locked}.")}
    written = set()
    for rank, found in enumerate(ranks):
        weights, names, kept, again, (loss, expected) = found[case]
        still = {name for name, weight in start.items() if torch.equal(weight, weights[name])}
        assert still == locked, f"rank {rank}: {still ^ locked}"
        assert kept == 0, f"rank {rank}: the tower keeps {kept} tensors"
        differing = [
            name for name, weight in weights.items() if not torch.equal(weight, again[name])
        ]
        assert not differing, f"rank {rank}: after a resume {differing}"
        assert loss == expected, f"rank {rank}: the loss after a resume"
        written |= names
    moments = {n.split("/", 2)[2] for n in written if n.startswith("model/exp_avg/")}
    assert moments == set(start) - locked
    assert {n.split("/", 2)[2] for n in written if n.startswith("model/weight/")} == set(start)


def test_both_towers_cannot_be_locked():
    tiny = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml")]
    assert parse([*tiny, "--stages.full.locked", "text"])[0].stages["full"].locked == "text"
    with pytest.raises(ValueError, match=r"locked.*'image', 'text'"):
        parse([*tiny, "--stages.full.locked", "[image, text]"])
