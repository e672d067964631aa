"""Results that are kept as they come: whoever makes them, in however many turns, they are alike."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.pool import PoolOptions, RunOptions
from data_prep.records import Record, Records

ITEMS = 12


def squares(state: dict[str, Any], item: int) -> Record:
    """Slow enough to be killed in the middle."""
    time.sleep(state["wait_s"])
    with Path(state["log"]).open("a") as log:
        log.write(f"{item}\n")
    text = "\udcff" * item  # bytes that are no UTF-8 come back too
    return {"square": np.arange(item) ** 2, "none": None, "text": text, "nested": [{"a": item}]}


def make(folder: Path, wait_s: float = 0.0) -> Records[Any, Any]:
    state = {"wait_s": wait_s, "log": str(folder.parent / "log")}
    request = {"rows": ITEMS}
    items = range(ITEMS)
    return Records(folder=folder, request=request, function=squares, state=state, items=items)


def done(folder: Path) -> list[int]:
    log = folder.parent / "log"
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def check(records: Records[Any, Any]) -> None:
    for item, record in enumerate(records):
        assert record["square"].tolist() == [number**2 for number in range(item)]
        assert (record["none"], record["text"]) == (None, "\udcff" * item)
        assert record["nested"] == [{"a": item}]


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    code = (
        "from pathlib import Path; from data_prep.pool import PoolOptions;"
        "from tests.data_prep.test_records import make;"
        f"make(Path({str(folder)!r}), 0.2).do(PoolOptions(workers=1), what='t', unit='items')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    while len(list(folder.glob("*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = done(folder)
    records = make(folder)
    assert 3 <= len(before) < ITEMS
    assert ITEMS - len(before) <= records.missing() <= ITEMS - 3
    records.do(PoolOptions(workers=2), what="t", unit="items")
    assert len(done(folder)) <= ITEMS + 1, "at most the one that was under way is made twice"
    check(records)


def test_shares_do_their_own_and_others_help(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    records = make(folder)
    one = RunOptions(workers=1, task_index=1, task_count=3)
    records.do(one, what="t", unit="items")
    assert done(folder) == [4, 5, 6, 7]
    records.do(one, what="t", unit="items", others=True)
    assert done(folder) == list(range(ITEMS)), "nothing twice"
    check(records)


def test_of_another_request_nothing_is_kept(tmp_path: Path) -> None:
    make(tmp_path / "work").do(PoolOptions(workers=1), what="t", unit="items")
    state = {"wait_s": 0, "log": str(tmp_path / "log")}
    other = Records(
        folder=tmp_path / "work",
        request={"rows": 3},
        function=squares,
        state=state,
        items=range(3),
    )
    assert other.missing() == 3


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    records = make(tmp_path / "work")
    records.do(PoolOptions(workers=1), what="t", unit="items")
    path = tmp_path / "work" / "000005.npz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"000005.npz.*remove this file"):
        list(records)


def test_where_nothing_can_be_written_the_work_is_done_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        folder = Path("/sys/work")  # root may write anywhere else
    else:
        tmp_path.chmod(0o500)
        folder = tmp_path / "work"
    state = {"wait_s": 0, "log": os.devnull}
    records = Records(folder=folder, request={}, function=squares, state=state, items=range(ITEMS))
    if folder.parent == Path("/sys"):
        with pytest.raises(OSError):
            folder.mkdir()
    records.do(PoolOptions(workers=1), what="t", unit="items")
    check(records)
    assert "cannot be written" in capsys.readouterr().err
