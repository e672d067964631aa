"""Accuracy against tokens: each point is what an evaluation at those lengths gives by itself."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from commands import evaluate
from judged import looked_up, points_of
from tiny_models import write_untrained

from pretrain.batches.images import evaluation_pixels
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.features import KeptTokens, embed_pixels, image_features
from pretrain.evaluation.options import AbilitiesOptions, SweepOptions
from pretrain.export.native import load


@pytest.fixture(scope="module")
def model(tiny_dataset, tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("sweep") / "export", tiny_dataset)


def test_every_point_is_the_evaluation_at_its_lengths(
    model, tiny_dataset, tiny_evaluation_set, tmp_path
):
    sets = {"held_out": tiny_evaluation_set}
    abilities = AbilitiesOptions(pictures=10)
    evaluate(
        model=model, sets=sets, abilities=abilities, out=tmp_path / "sweep.json",
        tokens=SweepOptions(image_px=[48, 32], keep_tokens=[4, 16], text_tokens=[6, 12],
                            plot=tmp_path / "sweep.svg"),
    )  # fmt: skip
    points = points_of(tmp_path / "sweep.json")
    lengths = [(p["axis"], p["image_px"], p["image_tokens"], p["text_tokens"]) for p in points]
    assert lengths == [
        ("image_px", 32, 16, 12), ("image_px", 48, 36, 12), ("keep_tokens", 32, 4, 12),
        ("keep_tokens", 32, 16, 12), ("text_tokens", 32, 16, 6), ("text_tokens", 32, 16, 12),
    ]  # fmt: skip
    for place, more in ((1, {"image_px": 48}), (4, {"text_tokens": 6}), (5, {})):
        evaluate(model=model, sets=sets, abilities=abilities, out=tmp_path / "one.json", **more)
        (alone,) = points_of(tmp_path / "one.json")
        assert points[place]["figures"] == alone["figures"]
        assert alone == {name: points[place][name] for name in alone}
    kept, whole = (looked_up(points[place]["figures"], "retrieval") for place in (3, 0))
    assert set(whole["held_out"]) == {"image_to_text", "text_to_image"}
    assert kept == whole  # all 16 tokens kept, in their order
    assert points[2]["figures"] != points[0]["figures"]
    drawn = (tmp_path / "sweep.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for named in ("retrieval held out image to text R@1", "abilities counting top-1"):
        assert f"<!-- {named} -->" in drawn


def test_kept_tokens_are_the_same_on_any_batch_and_the_others_play_no_part(
    model, tiny_evaluation_set
):
    one = load(model)
    dataset = Dataset(tiny_evaluation_set, "full")
    kept = KeptTokens(reduction="random", count=3)
    small, large = (image_features(one.model, dataset, "imagenet", b, kept) for b in (7, 256))
    worst = float((small - large).abs().max())
    assert worst < 1e-5, f"largest difference {worst}"
    rows = [5, 6]
    index = kept.index(rows, 4)
    assert index.shape == (2, 3) and not torch.equal(index[0], index[1])
    squares = [evaluation_pixels(decode(dataset.read(row).jpeg), 32) for row in rows]
    pixels = np.stack(squares).copy()
    for picture, own in zip(pixels, index.tolist(), strict=True):
        for patch in set(range(16)) - set(own):
            top, left = divmod(patch, 4)
            picture[top * 8 : top * 8 + 8, left * 8 : left * 8 + 8] = 0
    blind = embed_pixels(one.model, pixels, rows, "imagenet", kept)
    worst = float((blind - large[5:7]).abs().max())
    assert worst < 1e-5, f"largest difference {worst}"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_px": [30]}, r"tokens\.image_px: image_px=30.*multiple of 8"),
        ({"keep_tokens": [17]}, r"tokens\.keep_tokens: .*between 1 and 16"),
        ({"text_tokens": [1]}, r"tokens\.text_tokens: text_tokens=1 leaves no room"),
    ],
)
def test_a_length_that_cannot_be_is_named_before_anything_is_judged(
    model, tiny_evaluation_set, capsys, options, told
):
    with pytest.raises(SystemExit):
        evaluate(
            model=model, sets={"held_out": tiny_evaluation_set}, tokens=SweepOptions(**options)
        )
    assert re.search(told, capsys.readouterr().err)
