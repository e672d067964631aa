"""Recall, chance and zero-shot accuracy equal what a brute-force count gives."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.evaluation.retrieval import chance_recall, ranks, retrieval
from pretrain.evaluation.zero_shot import class_embeddings, zero_shot


def test_recall_equals_sorting_everything():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(60, 8, generator=generator), dim=1)
    texts = F.normalize(torch.randn(23, 8, generator=generator), dim=1)
    caption = torch.randint(0, 23, (60,), generator=generator)
    caption[:23] = torch.arange(23)
    result = retrieval(images, texts, caption)
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


def test_a_tie_is_no_hit():
    same = F.normalize(torch.ones(2, 4), dim=1)
    assert ranks(same, same, torch.arange(2), torch.arange(2)).tolist() == [2, 2]


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
