"""The approximate index of a large dataset finds what the exact one finds."""

import numpy as np

from pretrain.search import index as search_index


def test_above_the_threshold_the_index_is_approximate_and_still_finds_them(monkeypatch):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(200, 32))
    rows = centres[generator.integers(200, size=12_000)] + generator.normal(size=(12_000, 32)) / 3
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    monkeypatch.setattr(search_index, "EXACT_ROWS", 10_000)
    index = search_index.build_index(
        lambda: [(at, rows[at : at + 5000]) for at in range(0, 12_000, 5000)], 12_000, 32
    )
    shares = []
    for query in rows[::400]:
        found = search_index.nearest(index, query, 10)
        scores = rows.astype(np.float64) @ query
        assert all(abs(score - scores[row]) < 2e-3 for row, score in found)
        best = np.argsort(-scores)[:10]
        shares.append(len({row for row, _ in found} & set(best.tolist())) / 10)
    assert np.mean(shares) > 0.95, f"recall {np.mean(shares):.3f}"
    assert index.nprobe < index.nlist
