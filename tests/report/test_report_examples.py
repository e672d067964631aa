"""The report shows stored confusions, captions with their pictures, and the embedding map."""

import random
import re
from pathlib import Path

import numpy as np
import torch
from report_run import report, write_gallery, write_run

from pretrain.evaluation.examples import draw_queries, plane, ranking


def test_examples_are_shown_as_stored(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    _, before = report(tmp_path / "run")
    for absent in ("Hardest confusions", "Embedding map", "Caption → pictures"):
        assert absent not in before.text
    write_gallery(tmp_path / "run", random.Random(0), is_whole=True)
    source, page = report(tmp_path / "run")
    assert "rank 17 of 1,720" in page.text
    assert ["cat face", "red heart", "7 of 9"] in [
        [cell.strip() for cell in row] for row in page.table_with("taken for")
    ]
    chart = next(c for c in re.findall(r"<figure.*?</figure>", source, re.S) if "Embeddings" in c)
    assert chart.count("<title>picture: ") == 60 and chart.count("<title>caption: ") == 30
    keys = re.findall(r"</i> ([^<]*?) <b>", chart)
    assert len([key for key in keys if key.startswith("kind")]) == 10
    assert keys[-3:] == ["other", "pictures", "texts"]


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


def test_the_plane_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    vectors = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
    vectors -= vectors.mean(axis=0)
    places, shares = plane(vectors)
    pca = PCA(2, svd_solver="full").fit(vectors)
    gap = np.abs(np.abs(places) - np.abs(pca.transform(vectors))).max()
    assert gap < 1e-9 and np.allclose(shares, pca.explained_variance_ratio_), f"largest gap {gap}"
    assert np.allclose(plane(vectors[::-1])[0][::-1], places)  # the sign does not depend on order
