"""The evaluator reads the right tier, averages label ensembles, and repeats itself exactly."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dataset_copies import damage
from judged import looked_up
from tiny_datasets import build_food
from vocabularies import of_size

from pretrain.batches.augment import prepare
from pretrain.batches.images import centre_box, resize
from pretrain.batches.options import AugmentOptions
from pretrain.dataset.manifest import read_manifest, tier_for
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.evaluator import Evaluator
from pretrain.evaluation.features import image_features
from pretrain.evaluation.options import EvaluationOptions, ZeroShotOptions
from pretrain.evaluation.zero_shot import ZeroShot
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.tokens.context import context
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer

OPTIONS = ModelOptions(
    image=ImageTowerOptions(width=32, depth=1, heads=2, patch_px=8),
    text=TextTowerOptions(width=32, depth=1, heads=2, positions_resize="extend"),
    embed_dim=32,
)


def test_what_a_zero_shot_task_cannot_use_is_found_before_training(tiny_dataset, two_tiers):
    for prompt in ("{} and {}", "no name", "{name}", "{", "{0}"):
        with pytest.raises(ValueError, match="zero-shot prompt"):
            ZeroShotOptions(prompts=[prompt])
    task = {"no_such_column": ZeroShotOptions(label_ensemble=two_tiers)}
    with pytest.raises(ValueError, match=r"zero_shot\.no_such_column.*has metadata"):
        evaluator(tiny_dataset, zero_shot=task)


def test_a_damaged_evaluation_set_is_named(tiny_dataset, copy):
    damage(copy, [5], "json")
    with pytest.raises(ValueError, match=r"evaluation\.sets\.held: sample .*crc_mismatch"):
        evaluator(tiny_dataset, sets={"held": copy})


def test_a_damaged_picture_of_an_evaluation_set_is_named_with_its_set(tiny_dataset, copy):
    one = evaluator(tiny_dataset, sets={"held": copy})
    damage(copy, [5])
    key = one.sets.named["held"].dataset.key(5)
    with pytest.raises(ValueError, match=rf"evaluation set {copy}, tier full, sample {key}"):
        image_features(build(), one.sets.named["held"].dataset, "imagenet", 64)


def build(image_px: int = 32, text_tokens: int = 8, weights=None) -> CLIP:
    return build_model(
        OPTIONS,
        tokens=TokenOptions(image_px=image_px, text_tokens=text_tokens),
        vocabulary=of_size(400),
        device=torch.device("cpu"),
        weights=weights,
    ).eval()


def evaluator(training, image_sizes=(32,), **options) -> Evaluator:
    return Evaluator(
        EvaluationOptions(**options),
        image_sizes=image_sizes,
        tokenizer=open_tokenizer(training / "tokenizer.model"),
        normalisation="imagenet",
    )


@pytest.fixture(scope="module")
def two_tiers(tiny_dataset, tmp_path_factory):
    """The held-out artist's drawings of 64 px, stored at 32 px too."""
    return build_food(
        tmp_path_factory.mktemp("tiers") / "held_out",
        "artist = 'twemoji'",
        *("--tokenizer", str(tiny_dataset / "tokenizer.model"), "--tiers", "32:95,full:95"),
    )


@pytest.mark.parametrize(
    ("sides", "image_px", "expected"),
    [
        ({"160": 160, "320": 320, "full": None}, 112, "160"),
        ({"160": 160, "320": 320, "full": None}, 160, "160"),
        ({"160": 160, "320": 320, "full": None}, 224, "320"),
        ({"160": 160, "320": 320, "full": None}, 336, "full"),
        ({"160": 160, "96": 96}, 224, "160"),
        ({"full": None}, 8, "full"),
    ],
)
def test_the_smallest_tier_that_is_large_enough_is_read(two_tiers, sides, image_px, expected):
    manifest = read_manifest(two_tiers)
    any_tier = manifest.tiers["full"]
    tiers = {name: replace(any_tier, shortest_px=side) for name, side in sides.items()}
    assert tier_for(replace(manifest, tiers=tiers), image_px) == expected


@pytest.mark.parametrize(("image_px", "tier"), [(32, "32"), (48, "full")])
def test_each_size_is_evaluated_in_its_own_tier(two_tiers, tiny_dataset, image_px, tier):
    """Figures and record are those of the tier; the training set's tiers play no part."""
    judged = evaluator(tiny_dataset, (32, 48), sets={"held_out": two_tiers})
    torch.manual_seed(0)
    model = build(image_px)
    result = looked_up(judged.evaluate(model), "retrieval")["held_out"]
    assert result["image_to_text"]["tier"] == tier

    dataset = Dataset(two_tiers, tier)
    label = dataset.manifest.captions[0]
    captions = [dataset.read_json(row)["captions"][label] for row in range(len(dataset))]
    distinct = list(dict.fromkeys(captions))
    images = own_images(model, dataset)
    texts = own_texts(model, distinct, judged.tokenizer)
    scores = images.double() @ texts.double().T
    best = [distinct[place] for place in scores.argmax(dim=1).tolist()]
    hits = np.mean([found == own for found, own in zip(best, captions, strict=True)])
    assert result["image_to_text"]["r@1"] == pytest.approx(hits)
    for shown in judged.gallery(model, seed=0)["images"]:
        jpeg = base64.b64decode(shown["jpeg_base64"])
        assert decode(jpeg).shape[0] == (dataset.manifest.tiers[tier].shortest_px or 64)


def own_images(model: CLIP, dataset: Dataset) -> torch.Tensor:
    side = model.image.image_px
    pictures = [decode(dataset.read(row).jpeg) for row in range(len(dataset))]
    pixels = np.stack([resize(p, centre_box(*p.shape[:2]), side) for p in pictures])
    with torch.inference_mode():
        return model.encode_image(
            prepare(torch.from_numpy(pixels), None, AugmentOptions(), "imagenet", torch.float32)
        )


def own_texts(model: CLIP, texts: list[str], tokenizer: Tokenizer) -> torch.Tensor:
    ids = [np.asarray(tokenizer.encode(text), np.int64) for text in texts]
    with torch.inference_mode():
        return model.encode_text(
            torch.from_numpy(context(ids, model.text.text_tokens, "bos", tokenizer.vocabulary))
        )


def test_a_tier_can_be_named_and_must_be_there(two_tiers, tiny_dataset):
    named = evaluator(tiny_dataset, (48,), sets={"held_out": two_tiers}, tier="32")
    assert {figure.facts["tier"] for figure in named.evaluate(build(48))} == {"32"}
    with pytest.raises(ValueError, match=r"evaluation\.tier='160'.*\['32', 'full'\]"):
        evaluator(tiny_dataset, (48,), sets={"held_out": two_tiers}, tier="160")


def test_a_missing_set_is_named_with_its_option(tiny_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.sets\.mine: no manifest\.json in .*absent"):
        evaluator(tiny_dataset, sets={"mine": tmp_path / "absent"})


def test_a_label_ensemble_is_the_mean_of_its_captions(tiny_dataset, tiny_evaluation_set):
    """Two artists of the training set drew each dish: its caption counts once in its class."""
    column = "subgroup"
    judged = evaluator(
        tiny_dataset,
        sets={"held_out": tiny_evaluation_set},
        zero_shot={column: ZeroShotOptions(label_ensemble=tiny_dataset)},
    )
    torch.manual_seed(0)
    model = build()
    result = looked_up(judged.evaluate(model), "zero-shot")["held_out"][column]

    labels = Dataset(tiny_dataset, "full")
    first = labels.manifest.captions[0]
    records = [labels.read_json(row) for row in range(len(labels))]
    held_out = Dataset(tiny_evaluation_set, "full")
    owners = [held_out.read_json(row)["meta"][column] for row in range(len(held_out))]
    classes = sorted(set(owners))
    means = []
    for name in classes:
        texts = sorted({r["captions"][first] for r in records if r["meta"][column] == name})
        assert len(texts) > 1
        means.append(own_texts(model, texts, judged.tokenizer).double().mean(dim=0))
    scores = own_images(model, held_out).double() @ F.normalize(torch.stack(means), dim=1).T
    truth = torch.tensor([classes.index(owner) for owner in owners])
    order = scores.argsort(dim=1, descending=True)
    assert result["classes"] == len(classes)
    for k in (1, 5):
        right = (order[:, :k] == truth[:, None]).any(dim=1).double().mean()
        assert result[f"top{k}"] == pytest.approx(float(right))
    (task,) = [one for one in judged.tasks if isinstance(one, ZeroShot)]
    matrix = task.classifier(judged._subject(model), column)
    difference = float((matrix.double() - F.normalize(torch.stack(means), dim=1)).abs().max())
    assert difference < 1e-6, f"largest difference {difference}"


def test_the_same_weights_are_the_same_model_at_a_longer_context(tiny_dataset, tiny_evaluation_set):
    """Places that were never trained do not depend on torch's generator, nor move it."""
    weights = build().state_dict()
    judged = evaluator(tiny_dataset, sets={"held_out": tiny_evaluation_set})
    texts = torch.randint(4, 400, (6, 20))
    embedded, figures, ahead = [], [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(1, generator=torch.Generator().manual_seed(seed))
        longer = build(text_tokens=20, weights=weights)
        ahead.append(torch.equal(torch.rand(1), expected))
        embedded.append(longer.encode_text(texts).detach())
        figures.append(judged.evaluate(longer))
    difference = float((embedded[0] - embedded[1]).abs().max())
    assert torch.equal(*embedded), f"largest difference {difference}"
    assert figures[0] == figures[1]
    assert all(ahead)
    rows = longer.text.encoder.embeddings.position_embedding.weight[8:].detach()
    assert 0.005 < float(rows.std()) < 0.02  # drawn as a new model's: CLIP's 0.01


def test_a_new_model_still_follows_the_seed():
    torch.manual_seed(1)
    first = build().state_dict()
    second = build().state_dict()
    torch.manual_seed(1)
    again = build().state_dict()
    name = "image_projection.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], second[name])
