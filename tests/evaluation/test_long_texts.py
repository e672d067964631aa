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
ROOM = CONTEXT - 1
WORDS = "red apple green tea cup of sweet cake with bread and the small round plate"


def sentences_of(words: list[str]) -> list[list[str]]:
    """Of 40 texts their sentences: from one short one to several, some longer than the context."""
    draws = np.random.default_rng(0)
    texts = [
        [" ".join(draws.choice(words, length)).capitalize() + "."
         for length in draws.integers(1, 12, 1 + row // 6)]
        for row in range(40)
    ]  # fmt: skip
    texts[31] = texts[30] + texts[0]
    return texts


@pytest.fixture(scope="module")
def long_set(tmp_path_factory, tiny_dataset):
    """40 drawings; most texts are longer than the context, two of them the same at its length."""
    root = tmp_path_factory.mktemp("long")
    food = polars.read_parquet(CORPUS).filter(
        (polars.col("group") == "food & drink") & (polars.col("artist") == "twemoji")
    )[:40]
    texts = [" ".join(own) for own in sentences_of(WORDS.split())]
    food.with_columns(polars.Series("text", texts)).write_parquet(root / "long.parquet")
    out = root / "set"
    status = data_prep([
        *("build", "--source", str(root / "long.parquet"), "--out", str(out)),
        *("--tokenizer", str(tiny_dataset / "tokenizer.model"), "--tiers", "full:95"),
        *("--caption", "label={caption}", "--caption", "text={text}"),
    ])  # fmt: skip
    assert status == 0
    return out


def encoded_sentences(tokenizer, sentences: list[str]) -> list[np.ndarray]:
    """Ids of each sentence; none crosses a border."""
    text = " ".join(sentences)
    ids, starts = tokenizer.encode_with_offsets(text)
    ends = np.cumsum([len(sentence) + 1 for sentence in sentences])[:-1] - 1
    return np.split(np.asarray(ids, np.int64), np.searchsorted(starts, ends))


def packed(sentences: list[np.ndarray]) -> list[np.ndarray]:
    """Pieces that fit: whole sentences while there is room, a long one filled up and cut."""
    pieces, piece = [], np.zeros(0, np.int64)
    for sentence in sentences:
        if len(piece) and len(piece) + len(sentence) > ROOM:
            pieces.append(piece)
            piece = piece[:0]
        piece = np.concatenate([piece, sentence])
        while len(piece) > ROOM:
            pieces.append(piece[:ROOM])
            piece = piece[ROOM:]
    return [*pieces, piece]


def test_every_reading_finds_what_brute_force_finds(tiny_dataset, long_set, tmp_path, capsys):
    folder = write_untrained(tmp_path / "export", tiny_dataset, text_tokens=CONTEXT)
    options = LongTextsOptions(sets={"long": long_set}, caption="text", batch_samples=7)
    evaluate(model=folder, long_texts=options, out=tmp_path / "out.json")
    figures = last_figures(tmp_path / "out.json")
    assert {one["task"] for one in figures} == {"long-texts"} and len(figures) == 18
    found = looked_up(figures, "long-texts")["long"]
    assert "long-texts  long  pieces image to text" in capsys.readouterr().out

    one, dataset = load(folder), Dataset(long_set, "full")
    count = len(dataset)
    pictures = [Image.fromarray(decode(dataset.read(row).jpeg)) for row in range(count)]
    images = one.encode_images(pictures).double().numpy()
    stored = [dataset.read_json(row)["captions"]["text"] for row in range(count)]
    texts = {" ".join(own): own for own in sentences_of(WORDS.split())}
    assert set(texts) == set(stored) and len(texts) == count
    encoded = [encoded_sentences(one.tokenizer, texts[text]) for text in stored]
    lengths = [sum(map(len, own)) for own in encoded]
    assert min(lengths) <= ROOM < max(lengths) and max(lengths) > 3 * ROOM
    assert max(len(sentence) for own in encoded for sentence in own) > ROOM

    def embed(pieces: list[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            rows = context(pieces, CONTEXT, "bos", one.tokenizer.vocabulary)
            return one.model.encode_text(torch.from_numpy(rows)).double().numpy()

    means = np.stack([embed(packed(own)).mean(0) for own in encoded])
    readings = {
        "pieces": means / np.linalg.norm(means, axis=1, keepdims=True),
        "cut": np.concatenate([embed([np.concatenate(own)[:ROOM]]) for own in encoded]),
        "first_sentence": np.concatenate([embed([own[0]]) for own in encoded]),
    }
    own = np.eye(count, dtype=bool)
    worst = 0.0
    for how, features in readings.items():
        for way, scores in (("image_to_text", images @ features.T),
                            ("text_to_image", features @ images.T)):  # fmt: skip
            rates = found[f"{how}_{way}"]
            # A tie is no hit, and two beginnings that are alike tie, but for rounding.
            rank = 1 + ((scores >= scores[own][:, None] - 1e-7) & ~own).sum(1)
            for k in (1, 5, 10):
                worst = max(worst, abs(rates[f"r@{k}"] - (rank <= k).mean()))
                assert rates[f"chance_r@{k}"] == pytest.approx(k / count)
            assert rates["n"] == count
            assert rates["longer"] == pytest.approx(np.mean(np.array(lengths) > ROOM))
    assert worst < 1e-6, f"largest difference of a rate {worst}"
    assert len({str(found[f"{how}_text_to_image"]) for how in readings}) == 3
    options = LongTextsOptions(sets={"long": long_set}, caption="text", readings=["pieces"])
    evaluate(model=folder, long_texts=options, out=tmp_path / "one.json")
    alone = looked_up(last_figures(tmp_path / "one.json"), "long-texts")["long"]
    assert set(alone) == {"pieces_image_to_text", "pieces_text_to_image"}


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
    with pytest.raises(ValueError, match=r"long_texts\.readings"):
        LongTextsOptions(sets={"long": tiny_dataset}, readings=[])
