"""A dataset of CLIP's own ids is trained on, evaluated and exported; nothing takes other ids."""

from pathlib import Path

import pytest
import torch
from commands import export
from forked_runs import train, trained
from tiny_datasets import build_food
from tiny_runs import evaluation_options
from transformers import AutoTokenizer

from pretrain.export.native import load

pytestmark = pytest.mark.soak  # a training of its own; README's run converts and searches by CLIP's
TEXTS = ["red apple", "!!! a cup of tea!", "", "a very long caption of a cup of tea " * 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    train = build_food(folder / "train", "artist = 'noto'", "--tokenizer", "clip")
    given = ("--tokenizer", str(train / "tokenizer.json"))
    held_out = build_food(folder / "held_out", "artist = 'twemoji'", *given)
    text = ("--model.text.specials", "bos_eos", "--model.text.pool", "eos")
    text += ("--model.text.causal", "true")
    trained(folder / "run", train, *evaluation_options(held_out), *text)
    return folder / "run"


@pytest.mark.parametrize("form", ["transformers", "open_clip"])
def test_an_export_gives_the_run_s_embeddings(run: Path, tmp_path: Path, capsys, form) -> None:
    # The command compares both with the run's own model, by either library.
    export(run_dir=run, out=tmp_path / form, format=form)
    assert "largest difference after loading" in capsys.readouterr().out
    tokens = 12
    theirs = AutoTokenizer.from_pretrained(tmp_path / form)
    ids = theirs(TEXTS, padding="max_length", truncation=True, max_length=tokens)["input_ids"]
    if form == "transformers":
        own = load(tmp_path / form)
        assert own.text_ids(TEXTS).tolist() == ids
        assert own.model.text.vocabulary.eos_id == 49407
    assert [row[0] for row in ids] == [49406] * 4 and all(49407 in row for row in ids)


def test_the_models_pool_at_clip_s_eos(run: Path, tmp_path: Path) -> None:
    export(run_dir=run, out=tmp_path / "native", format="native")
    own = load(tmp_path / "native")
    ids = own.text_ids(TEXTS)
    with torch.inference_mode():
        expected = own.model.encode_text(ids)
        behind = (ids == 49407).int().cumsum(1).bool() & (ids != 49407)
        changed = own.model.encode_text(torch.where(behind, 123, ids))
    assert torch.equal(expected, changed)  # causal: what stands behind eos is not seen


def test_an_evaluation_set_of_another_tokenizer_is_refused(
    run: Path, tiny_evaluation_set: Path, tmp_path: Path
) -> None:
    options = evaluation_options(tiny_evaluation_set)
    ended = train(tmp_path / "run", run.parent / "train", *options)
    assert ended.code == 2 and "another tokenizer" in ended.output
