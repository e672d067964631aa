"""Work spread over processes costs the process that gives it little, however many items it has."""

import time
from collections.abc import Iterator

import pytest

from data_prep.pool import PoolOptions, Report, run_in_pool

ITEMS = 20_000


def double(offset: int, item: int, report: Report) -> int:
    if item < 0:
        raise ValueError("no such item")
    if item % 1000 == 0:
        report(item)
    return offset + 2 * item


def test_twenty_thousand_items_cost_the_parent_seconds_and_all_come_back() -> None:
    told: list[int] = []
    begin = time.process_time()
    found = sorted(run_in_pool(double, 7, range(ITEMS), PoolOptions(workers=2), told.append))
    cost_s = time.process_time() - begin
    assert found == [7 + 2 * item for item in range(ITEMS)]
    assert sorted(told) == list(range(0, ITEMS, 1000))
    assert cost_s < 6, f"{cost_s:.1f} s of this process; all items handed over at once took 13 s"


def test_the_first_exception_stops_all() -> None:
    def all_of() -> Iterator[int]:
        yield from run_in_pool(
            double, 0, [*range(50), -1, *range(50)], PoolOptions(workers=2), lambda _: None
        )

    with pytest.raises(ValueError, match="no such item"):
        list(all_of())
