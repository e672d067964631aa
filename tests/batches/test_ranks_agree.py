"""What one rank finds, all say: agreed checks, unusable samples counted over all ranks."""

import time
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks

MOST = 10_000  # samples before their share is judged


def agree_on_a_rank(rank: int):
    """(message on this rank, what the action gave where none failed)."""
    from pretrain.base.distributed import run_together
    from pretrain.base.faults import StoppedError

    def check() -> int:
        if rank == 1:
            raise OSError("the dataset is not\n on this machine")
        return rank

    try:
        run_together(check)
        message = None
    except StoppedError as error:
        message = str(error)
    return message, run_together(lambda: 10 + rank)


def test_a_fault_of_one_rank_stops_all_with_its_message():
    found = run_ranks(agree_on_a_rank, 2)
    assert [message for message, _ in found] == ["the dataset is not on this machine"] * 2
    assert [given for _, given in found] == [10, 11]


def count_on_a_rank(rank: int):
    """(total after the first step, message of the second) with all damage on rank 1."""
    from pretrain.base.distributed import all_ranks
    from pretrain.base.faults import StoppedError
    from pretrain.batches.options import FailureOptions
    from pretrain.run.health import count_replaced
    from pretrain.run.meter import Meter, Workload
    from pretrain.run.record import RunState

    said: list[str] = []
    job = SimpleNamespace(
        recipe=SimpleNamespace(data=SimpleNamespace(failures=FailureOptions(max_share=0.001))),
        dataset=SimpleNamespace(directory="DIR"),
        log=SimpleNamespace(say_once=lambda what, line: said.append(line)),
    )
    meter = Meter(Workload(batch_samples=64), torch.device("cpu"))
    state = RunState(samples_seen=MOST)
    first = {"crc_mismatch": f"sample {rank}"} if rank else {}
    bad = {"replaced_first": first, "replaced_in_a_row": 3 * rank}
    meter.stepped({"replaced": {"crc_mismatch": 10 * rank}, **bad})
    state = count_replaced(job, state, all_ranks(meter.of_this_rank(0.0)))
    counted = state.replaced
    meter.stepped({"replaced": {"crc_mismatch": rank, "undecodable": rank}, **bad})
    try:
        count_replaced(job, state, all_ranks(meter.of_this_rank(0.0)))
        message = None
    except StoppedError as error:
        message = str(error)
    assert any(line.startswith("sample 1: replaced by another") for line in said), said
    return counted, message


def test_unusable_samples_of_one_rank_stop_all_at_the_same_step():
    (first, message), (other, its) = run_ranks(count_on_a_rank, 2)
    assert first == other == {"crc_mismatch": 10}  # 0.1 % is allowed
    assert message == its and message is not None
    assert "crc_mismatch 11, undecodable 1" in message and "data.failures.max_share" in message


def different_on_a_rank(rank: int):
    from pretrain.base.distributed import all_ranks, run_together
    from pretrain.run.start import _check_alike

    of_rank = all_ranks({"recipe": "same", "dataset": f"copy {rank}"})
    with pytest.raises(ValueError, match="rank 1 has another dataset than rank 0"):
        run_together(lambda: _check_alike(of_rank))
    return torch.tensor(rank)


def test_ranks_that_see_different_datasets_do_not_start():
    assert [int(rank) for rank in run_ranks(different_on_a_rank, 2)] == [0, 1]


def test_only_the_main_rank_prints_what_all_know(monkeypatch, capsys):
    from pretrain.base.faults import one_line_faults

    def told(rank: str, local: str, known_to_all: bool) -> str:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        with pytest.raises(SystemExit), one_line_faults(known_to_all=known_to_all):
            raise ValueError("no such option")
        return capsys.readouterr().err

    assert told("0", "0", True) == "error: no such option\n"
    assert told("8", "0", True) == told("9", "1", False) == ""
    assert told("8", "0", False).startswith("error on ")  # another machine, which may differ
