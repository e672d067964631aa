"""A damaged log does not stop a resume, and what it lacks is said."""

import json
import shutil

import pytest
from forked_runs import train, trained

from pretrain.run.metrics import truncate

# Lines that are no events, as a damaged disk or another program leaves them.
NO_EVENTS = [
    b"null", b"5", b"[]", b'"text"', b"{}", b'{"samples_seen": 96}', b'{"event": "st',
    b'{"event": "step", "samples_seen": "96"}', b'{"event": "step", "samples_seen": [1]}',
    b'{"event": "step", "samples_seen": -1}', b'{"event": "step", "samples_seen": 1.5}',
    b'{"event": "step", "samples_seen": true}', b'{"event": 7, "samples_seen": 1}',
    b'{"event": "stage", "stage": ["x"], "samples_seen": 1}',
    b'{"event": "step", "step": ' + b"9" * 4000 + b"}",
    b'{"event": "step", "step": ' + b"9" * 5000 + b"}",
    b'{"event": "step", "samples_seen": 1, "x": ' + b"[" * 100_000,
]  # fmt: skip


def test_lines_that_are_no_events_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"event": "step", "samples_seen": n, "step": n}) for n in (1, 2, 3)]
    separated = json.dumps({"event": "note", "text": "a\u2028b\x85c"}, ensure_ascii=False)
    odd = b'{"event": "note", "text": "\xdf", "value": ' + b"9" * 4000 + b"}"
    path.write_bytes(
        b"\n".join(
            [good[0].encode(), *NO_EVENTS, odd, separated.encode(), *map(str.encode, good[1:])]
        )
        + b'\n{"event": "half'
    )
    assert truncate(tmp_path, 2) == 2
    kept = path.read_text().split("\n")
    assert [kept[0], kept[2], kept[3]] == [good[0], separated, good[1]] and kept[4:] == [""]


@pytest.fixture(scope="module")
def stopped(tiny_dataset, tmp_path_factory):
    """A run whose newest checkpoint is that of step 9."""
    run_dir = tmp_path_factory.mktemp("log") / "run"
    trained(run_dir, tiny_dataset, "--checkpoint.keep", "9")
    shutil.rmtree(run_dir / "checkpoints/step-00000010")
    return run_dir


@pytest.mark.parametrize(
    "damage",
    [
        "bytes",
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("deleted", "none", "halved")),
    ],
)
def test_a_damaged_log_does_not_stop_a_resume_and_is_said(stopped, tiny_dataset, tmp_path, damage):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    path = run_dir / "metrics.jsonl"
    whole = path.read_bytes()
    if damage == "bytes":
        first, second, *others = whole.split(b"\n")
        path.write_bytes(b"\n".join([first, b"\xdf" + second, *NO_EVENTS, *others]))
    elif damage == "deleted":
        path.unlink()
    elif damage == "halved":
        path.write_bytes(whole[: len(whole) // 2])
    ended = train(run_dir, tiny_dataset)
    assert ended.code == 0, ended.output
    said = [line for line in ended.output.splitlines() if f"{path} lacks" in line]
    assert len(said) == (damage != "none"), ended.output
    if damage == "bytes":
        assert "lacks 1 of " in said[0]
    again = trained(run_dir, tiny_dataset)  # with all that was said before
    assert again.count(f"{path} lacks") == len(said)
