"""Recall, chance and zero-shot accuracy equal what a brute-force count gives."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.evaluation.retrieval import chance_recall, ranks, retrieval
from pretrain.evaluation.zero_shot import class_embeddings, zero_shot

ROOT = Path(__file__).resolve().parents[2]


def test_recall_equals_sorting_everything():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(60, 8, generator=generator), dim=1)
    texts = F.normalize(torch.randn(23, 8, generator=generator), dim=1)
    caption = torch.randint(0, 23, (60,), generator=generator)
    caption[:23] = torch.arange(23)
    result = retrieval(images, texts, torch.stack([torch.arange(60), caption], 1))
    scores = images.double() @ texts.double().T
    for k in (1, 5, 10):
        hits = [
            int(caption[i]) in scores[i].argsort(descending=True)[:k].tolist() for i in range(60)
        ]
        assert result["image_to_text"][f"r@{k}"] == pytest.approx(np.mean(hits))
        hits = [
            bool((caption[scores[:, j].argsort(descending=True)[:k]] == j).any()) for j in range(23)
        ]
        assert result["text_to_image"][f"r@{k}"] == pytest.approx(np.mean(hits))
    assert (result["image_to_text"]["n"], result["text_to_image"]["n"]) == (60, 23)


def test_several_captions_a_picture_in_chunks_equal_the_whole_matrix_in_float64(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(37, 6, generator=generator), dim=1)
    texts = F.normalize(torch.randn(101, 6, generator=generator), dim=1)
    pairs = torch.unique(torch.randint(0, 37 * 101, (180,), generator=generator))
    matches = torch.stack([pairs // 101, pairs % 101], 1)[torch.randperm(len(pairs))]
    monkeypatch.setattr("pretrain.evaluation.retrieval._CHUNK", 8)
    monkeypatch.setattr("pretrain.evaluation.retrieval._GALLERY_CHUNK", 16)
    for queries, gallery, own in ((images, texts, matches), (texts, images, matches.flip(1))):
        scores = (queries.double() @ gallery.double().T).numpy()
        right = np.zeros(scores.shape, bool)
        right[own[:, 0], own[:, 1]] = True
        best = np.where(right, scores, -np.inf).max(1)
        expected = np.minimum(1 + ((scores > best[:, None]) & ~right).sum(1), 11)
        expected[~right.any(1)] = 11
        assert ranks(queries, gallery, own).tolist() == expected.tolist()


def test_a_tie_is_no_hit(monkeypatch):
    same = F.normalize(torch.ones(2, 4), dim=1)
    own = torch.arange(2)[:, None].expand(2, 2)
    assert ranks(same, same, own).tolist() == [2, 2]
    monkeypatch.setattr("pretrain.evaluation.retrieval._GALLERY_CHUNK", 64)
    one = F.normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    copies = one.expand(70, 512).contiguous()  # the last chunk is of another size
    own = torch.tensor([[row, 69 - row] for row in range(70)])
    assert ranks(copies, copies, own).tolist() == [11] * 70


# VmHWM is this process's own peak; ru_maxrss would begin with that of the one that started it.
MEASURED = """
import sys
from pathlib import Path
import torch
from pretrain.evaluation.retrieval import retrieval

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

pictures = int(sys.argv[1])
images, texts = torch.randn(pictures, 16), torch.randn(5 * pictures, 16)
matches = torch.stack([torch.arange(5 * pictures) // 5, torch.arange(5 * pictures)], 1)
retrieval(images[:64], texts[:320], matches[:320])
Path("/proc/self/clear_refs").write_text("5")
before = peak_mib()
retrieval(images, texts, matches)
print(peak_mib() - before)
"""


@pytest.mark.parametrize("pictures", [4_000, pytest.param(20_000, marks=pytest.mark.soak)])
def test_five_captions_a_picture_take_no_matrix(pictures):
    """The whole matrix of scores has 305 MiB, or 7.5 GiB."""
    command = [sys.executable, "-c", MEASURED, str(pictures)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    grown = float(done.stdout)
    print(f"retrieval grew the process by {grown:.0f} MiB")
    assert 0 < grown < 200, f"{grown:.0f} MiB"


@pytest.mark.parametrize(
    ("gallery", "positives", "k"), [(6, 1, 1), (6, 2, 3), (5, 4, 2), (4, 2, 10)]
)
def test_chance_counts_all_draws(gallery, positives, k):
    draws = list(itertools.combinations(range(gallery), min(k, gallery)))
    expected = np.mean([min(draw) < positives for draw in draws])
    assert chance_recall(np.array([positives]), gallery, k) == pytest.approx(expected)


def test_zero_shot_counts_and_largest_class():
    classes = torch.eye(6)
    owner = torch.tensor([0, 0, 0, 1, 2, 5])
    images = F.normalize(classes[torch.tensor([0, 0, 1, 1, 2, 3])] + 0.1, dim=1)
    result = zero_shot(images, owner, class_embeddings(classes, torch.arange(6), 6))
    assert result["top1"] == pytest.approx(4 / 6)
    assert result["largest_class"] == pytest.approx(3 / 6)
    assert (result["classes"], result["n"]) == (6, 6)


def test_a_class_without_text_is_never_predicted():
    classifier = class_embeddings(torch.eye(3), torch.tensor([0, 0, 2]), 3)
    assert torch.equal(classifier[1], torch.zeros(3))
    assert torch.allclose(classifier[[0, 2]].norm(dim=1), torch.ones(2))
