"""Caption classification: its loss is SuperCLIP's, its counts are the dataset's."""

import numpy as np
import pytest
import torch
from caption_classes import COUNTS, dense_loss
from engine_cases import small_clip

from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.losses.build import add_classifier
from pretrain.losses.options import LossOptions
from pretrain.models.build import build_model
from pretrain.tokens.options import TokenOptions


def test_the_loss_and_its_gradients_are_those_of_dense_targets_in_float64():
    model = small_clip(classifies=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(COUNTS), (64, 9), generator=generator)
    ids[0] = torch.tensor([1, 2, 0, 0, 0, 0, 0, 0, 0])  # no word at all
    ids[1] = 7  # one word, nine times
    pooled = torch.randn(64, 32, generator=generator)

    def results(loss, dtype):
        classifier = model.classifier.to(dtype)
        classifier.zero_grad()
        features = pooled.to(dtype, copy=True).requires_grad_()
        made = loss(classifier, features)
        made.backward()
        gradients = {n: p.grad.clone() for n, p in classifier.named_parameters()}
        return {"loss": made.detach(), "pooled": features.grad, **gradients}

    ours = results(lambda classifier, features: classifier(features, ids).mean(), torch.float32)
    theirs = results(lambda c, features: dense_loss(c, features, ids), torch.float64)
    assert model.classifier(pooled.double(), ids)[0] == 0
    for name, right in theirs.items():
        worst = float((ours[name] - right).abs().max() / right.abs().max())
        print(f"{name}: largest relative difference {worst:.1e}")
        assert worst < 1e-5, f"{name}: largest relative difference {worst}"


def test_the_counts_are_those_of_the_datasets_captions(tiny_dataset):
    manifest = read_manifest(tiny_dataset)
    dataset = Dataset(tiny_dataset, next(iter(manifest.tiers)))
    model = build_model(
        small_clip().options,
        tokens=TokenOptions(image_px=32, text_tokens=8),
        vocabulary=dataset.vocabulary,
        device=torch.device("cpu"),
    )
    add_classifier(LossOptions(), model, dataset, ())
    assert model.classifier is None
    add_classifier(LossOptions(classification_weight=1.0), model, dataset, ())
    every = np.concatenate([dataset.read(row).ids for row in range(len(dataset))])
    counted = np.bincount(every, minlength=dataset.vocabulary.size)
    captions = int(np.count_nonzero(dataset.index["tokens"]))
    assert captions == model.classifier.captions  # each picture has all of them
    special = [dataset.vocabulary.pad_id, dataset.vocabulary.bos_id, dataset.vocabulary.eos_id]
    counted[special] = captions
    found = model.classifier.counts.numpy()
    assert (found == np.minimum(counted, captions)).all() and len(np.unique(found)) > 20
    _, shares = model.classifier.targets(torch.from_numpy(every[None, :12].astype(np.int64)))
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match=r"loss\.classification_weight=.*positive"):
        LossOptions(classification_weight=weight)
