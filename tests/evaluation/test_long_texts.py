"""Retrieval by long texts equals brute force in float64 on a corpus that is built here."""

import numpy as np
import polars
import pytest
import torch
from commands import evaluate
from judged import last_figures, looked_up
from PIL import Image
from tiny_datasets import CORPUS
from tiny_models import write_untrained

from data_prep.__main__ import main as data_prep
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.options import LongTextsOptions
from pretrain.export.native import load
from pretrain.tokens.context import context

CONTEXT = 12  # of which one is the first, special token


@pytest.fixture(scope="module")
def long_set(tmp_path_factory, tiny_dataset):
    """40 drawings; most texts are longer than the context, two of them the same at its length."""
    root = tmp_path_factory.mktemp("long")
    food = polars.read_parquet(CORPUS).filter(
        (polars.col("group") == "food & drink") & (polars.col("artist") == "twemoji")
    )[:40]
    words = " ".join(food["caption"]).split()
    draws = np.random.default_rng(0)
    texts = [" ".join(draws.choice(words, 2 + row)) for row in range(len(food))]
    texts[31] = texts[30] + " " + texts[0]
    food.with_columns(polars.Series("text", texts)).write_parquet(root / "long.parquet")
    out = root / "set"
    status = data_prep([
        *("build", "--source", str(root / "long.parquet"), "--out", str(out)),
        *("--tokenizer", str(tiny_dataset / "tokenizer.model"), "--tiers", "full:95"),
        *("--caption", "label={caption}", "--caption", "text={text}"),
    ])  # fmt: skip
    assert status == 0
    return out


def test_whole_and_cut_texts_find_what_brute_force_finds(tiny_dataset, long_set, tmp_path, capsys):
    folder = write_untrained(tmp_path / "export", tiny_dataset, text_tokens=CONTEXT)
    options = LongTextsOptions(sets={"long": long_set}, caption="text", batch_samples=7)
    evaluate(model=folder, long_texts=options, out=tmp_path / "out.json")
    figures = last_figures(tmp_path / "out.json")
    assert {one["task"] for one in figures} == {"long-texts"} and len(figures) == 12
    found = looked_up(figures, "long-texts")["long"]
    assert "long-texts  long  whole image to text" in capsys.readouterr().out

    one, dataset = load(folder), Dataset(long_set, "full")
    count, room = len(dataset), CONTEXT - 1
    pictures = [Image.fromarray(decode(dataset.read(row).jpeg)) for row in range(count)]
    images = one.encode_images(pictures).double().numpy()
    texts = [dataset.read_json(row)["captions"]["text"] for row in range(count)]
    ids = [np.asarray(one.tokenizer.encode(text), np.int64) for text in texts]
    assert len(set(texts)) == count
    lengths = [len(own) for own in ids]
    assert min(lengths) <= room < max(lengths) and max(lengths) > 3 * room

    def embed(pieces: list[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            rows = context(pieces, CONTEXT, "bos", one.tokenizer.vocabulary)
            return one.model.encode_text(torch.from_numpy(rows)).double().numpy()

    means = np.stack([embed(np.split(own, range(room, len(own), room))).mean(0) for own in ids])
    whole = means / np.linalg.norm(means, axis=1, keepdims=True)
    cut = np.concatenate([embed([own[:room]]) for own in ids])
    own = np.eye(count, dtype=bool)
    worst = 0.0
    for how, features in (("whole", whole), ("cut", cut)):
        for way, scores in (("image_to_text", images @ features.T),
                            ("text_to_image", features @ images.T)):  # fmt: skip
            rates = found[f"{how}_{way}"]
            # A tie is no hit, and two cut texts that are alike tie, but for rounding.
            rank = 1 + ((scores >= scores[own][:, None] - 1e-7) & ~own).sum(1)
            for k in (1, 5, 10):
                worst = max(worst, abs(rates[f"r@{k}"] - (rank <= k).mean()))
                assert rates[f"chance_r@{k}"] == pytest.approx(k / count)
            assert rates["n"] == count
            assert rates["longer"] == pytest.approx(np.mean(np.array(lengths) > room))
    assert worst < 1e-6, f"largest difference of a rate {worst}"
    assert found["whole_text_to_image"] != found["cut_text_to_image"]


def test_what_is_wrong_is_said_on_one_line(tiny_dataset, tmp_path, capsys):
    folder = write_untrained(tmp_path / "export", tiny_dataset)
    for options, told in (
        ({"sets": {"long": tmp_path / "none"}}, "long_texts.sets.long: "),
        (
            {"sets": {"long": tiny_dataset}, "caption": "story"},
            "none named 'story': change long_texts.caption",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate(model=folder, long_texts=LongTextsOptions(**options))
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    with pytest.raises(ValueError, match=r"long_texts\.sets"):
        LongTextsOptions(sets={})
