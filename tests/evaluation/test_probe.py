"""Linear probe and k-NN equal what scikit-learn's other roads and numpy give on the same pixels."""

import io
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from commands import evaluate
from judged import last_figures, looked_up
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from tiny_datasets import CORPUS
from tiny_models import write_untrained

from pretrain.evaluation.options import ProbeOptions
from pretrain.evaluation.probe import Probe, _chosen_penalty, nearest_class
from pretrain.export.native import load

KINDS = ["drink", "food-fruit", "food-vegetable"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Drawings of three kinds of food by one artist to fit on, by another to judge by."""
    root = tmp_path_factory.mktemp("probe")
    corpus = polars.read_parquet(CORPUS).filter(polars.col("subgroup").str.replace(" ", "-")
                                                .is_in(KINDS))  # fmt: skip
    for part, artist in (("train", "noto"), ("test", "twemoji")):
        own = corpus.filter(polars.col("artist") == artist)
        assert len(own) > 20
        for place, row in enumerate(own.iter_rows(named=True)):
            path = root / part / row["subgroup"].replace(" ", "-") / f"{place:03d}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
    return {part: root / part for part in ("train", "test")}


def by_hand(export: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features by the export's own door, and labels."""
    model = load(export)
    files = sorted(folder.rglob("*.webp"))
    pictures = [Image.open(io.BytesIO(file.read_bytes())) for file in files]
    kinds = sorted({file.parent.name for file in files})
    return (
        model.encode_images(pictures).double().numpy(),
        np.array([kinds.index(file.parent.name) for file in files]),
    )


def test_the_figures_of_the_command_are_found_again(tiny_dataset, folders, tmp_path, capsys):
    write_untrained(tmp_path / "export", tiny_dataset)
    evaluate(
        model=tmp_path / "export",
        probe=ProbeOptions(**folders, inverse_penalty=100.0),
        out=tmp_path / "out.json",
    )
    found = looked_up(last_figures(tmp_path / "out.json"), "probe")["test"]
    assert "probe  test  linear  top-1" in capsys.readouterr().out
    known, labels = by_hand(tmp_path / "export", folders["train"])
    asked, truth = by_hand(tmp_path / "export", folders["test"])
    assert found["linear"]["n"] == found["knn"]["n"] == len(truth)

    # DINO's vote by scikit-learn's brute search over distances: |a - b|^2 = 2 - 2 cosine.
    vote = KNeighborsClassifier(
        20, algorithm="brute", weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
    )
    right = (vote.fit(known, labels).predict(asked) == truth).mean()
    assert found["knn"]["top1"] == pytest.approx(right)

    # The same convex problem by plain gradient steps in float64: C sum(losses) + |w|^2 / 2.
    x, y = torch.from_numpy(known), torch.from_numpy(labels)
    weight = torch.zeros(3, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=3000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits = x @ weight.T + bias
        total = 100 * torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        total = total + weight.square().sum() / 2
        total.backward()
        return total

    solver.step(loss)
    best = (torch.from_numpy(asked) @ weight.T + bias).argmax(1).numpy()
    gap = abs(found["linear"]["top1"] - (best == truth).mean())
    assert gap <= 1 / len(truth), f"linear probe differs by {gap:.3f}"  # a tie within rounding
    low, high = found["linear"]["top1_ci95"]
    assert low < found["linear"]["top1"] < high


def test_neighbours_vote_as_counted_one_by_one():
    draws = np.random.default_rng(0)
    known, asked = (draws.normal(size=(n, 6)) for n in (50, 31))
    known, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known, asked))
    labels = draws.integers(0, 4, 50)
    expected = []
    for row in asked:
        votes = np.zeros(4)
        for place in np.argsort(-(known @ row))[:7]:
            votes[labels[place]] += np.exp(known[place] @ row / 0.07)
        expected.append(votes.argmax())
    found = nearest_class(
        torch.from_numpy(asked), torch.from_numpy(known), torch.from_numpy(labels),
        classes=4, neighbours=7, temperature=0.07,
    )  # fmt: skip
    assert found.tolist() == expected


def test_a_chosen_penalty_is_the_same_again_and_follows_the_data():
    draws = np.random.default_rng(1)
    rare = (np.arange(400) % 10 == 0).astype(np.int64)
    # Told apart by a hundredth: a strong penalty names the common class everywhere.
    small = np.stack([rare * 0.01, draws.normal(size=400) * 1e-4], 1).astype(np.float32)
    even = np.arange(200) % 2
    noise = draws.normal(size=(200, 150)).astype(np.float32)
    noise[:, 0] += even  # more noise than pictures: a weak penalty learns it by heart
    assert _chosen_penalty(small, rare) > _chosen_penalty(noise, even)
    assert _chosen_penalty(noise, even) == _chosen_penalty(noise, even)


def test_what_is_wrong_is_said_on_one_line(folders, tmp_path):
    for kind in ("drink", "other"):
        (tmp_path / "more" / kind).mkdir(parents=True)
        (tmp_path / "more" / kind / "0.png").write_bytes(b"not opened")
    cases = (
        ({"train": folders["train"], "test": tmp_path / "more"}, r"probe\.test=.*\['other'\]"),
        ({"train": tmp_path / "more", "test": tmp_path / "more"}, r"one picture of 'drink'"),
        ({"train": tmp_path / "none", "test": folders["test"]}, r"probe\.train=.*no such folder"),
    )
    for options, told in cases:
        with pytest.raises(ValueError, match=told) as raised:
            Probe(ProbeOptions(**options))
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"probe\.neighbours=0"):
        ProbeOptions(**folders, neighbours=0)
