"""Retrieval with several captions a picture equals a whole float64 matrix of the dataset's own."""

import numpy as np
import pytest
from commands import evaluate
from judged import last_figures, looked_up
from PIL import Image
from tiny_models import write_untrained

from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.export.native import load


@pytest.fixture(scope="module")
def model(tiny_dataset, tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("captions") / "export", tiny_dataset)


@pytest.mark.parametrize("names", [["label", "phrase"], ["phrase", "keywords", "label"], None])
def test_recall_is_that_of_the_whole_matrix(model, tiny_dataset, tiny_evaluation_set, tmp_path,
                                            names):  # fmt: skip
    evaluate(model=model, sets={"held_out": tiny_evaluation_set}, captions=names,
             out=tmp_path / "out.json")  # fmt: skip
    found = looked_up(last_figures(tmp_path / "out.json"), "retrieval")["held_out"]

    dataset = Dataset(tiny_evaluation_set, "full")
    records = [dataset.read_json(row)["captions"] for row in range(len(dataset))]
    own = [{record[name] for name in names or ["label"]} for record in records]
    texts = sorted(set().union(*own))
    assert names is None or len(texts) > len(records)
    one = load(model)
    pictures = [Image.fromarray(decode(dataset.read(row).jpeg)) for row in range(len(dataset))]
    scores = (one.encode_images(pictures).double() @ one.encode_texts(texts).double().T).numpy()
    right = np.array([[text in mine for text in texts] for mine in own])
    for direction, score, hit in (("image_to_text", scores, right),
                                  ("text_to_image", scores.T, right.T)):  # fmt: skip
        best = np.where(hit, score, -np.inf).max(1, keepdims=True)
        rank = 1 + ((score >= best) & ~hit).sum(1)
        assert found[direction]["n"] == len(rank)
        for k in (1, 5, 10):
            gap = abs(found[direction][f"r@{k}"] - (rank <= k).mean())
            assert gap < 1e-6, f"{direction} R@{k}: {gap}"


def test_a_caption_that_no_sample_has_is_named(model, tiny_evaluation_set, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate(model=model, sets={"held": tiny_evaluation_set}, captions=["alt"])
    assert ended.value.code == 2
    assert "none named 'alt': change evaluation.captions" in capsys.readouterr().err
