"""The report shows stored confusions, captions with their pictures."""

import random
from pathlib import Path

import torch
from report_run import report, write_gallery, write_run

from pretrain.evaluation.examples import draw_queries, ranking


def test_examples_are_shown_as_stored(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    _, before = report(tmp_path / "run")
    for absent in ("Hardest confusions", "Caption → pictures"):
        assert absent not in before.text
    write_gallery(tmp_path / "run", random.Random(0), is_whole=True)
    _, page = report(tmp_path / "run")
    assert "rank 17 of 1,720" in page.text
    assert ["cat face", "red heart", "7 of 9"] in [
        [cell.strip() for cell in row] for row in page.table_with("taken for")
    ]


def test_a_draw_holds_hits_and_misses() -> None:
    """Of 50 queries only two hit; they are shown, and the draw repeats itself."""
    gallery = torch.eye(50)
    own = torch.tensor([[i, i if i in (7, 31) else (i + 1) % 50] for i in range(50)])
    rows = draw_queries(gallery, gallery, own, 6, seed=3)
    assert len(rows) == 6 and {7, 31} <= set(rows)
    assert rows == draw_queries(gallery, gallery, own, 6, seed=3)


def test_a_tie_ranks_before_the_own() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ranking(torch.tensor([1.0, 0.0]), gallery, [0])[1:] == ([1, 0, 2], 2)
