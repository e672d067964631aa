"""A longer context keeps the first 20 text positions and stretches the others, as in Long-CLIP:
the table by a plain formula, a run that resumes, and the model in open_clip."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import export
from forked_runs import TINY, train
from safetensors.torch import load_file
from tiny_runs import ROOT

from pretrain.export.native import load
from pretrain.models.positions import stretch_tail_positions
from pretrain.recipe.parsing import parse

TABLE = "text.encoder.embeddings.position_embedding.weight"
STRETCHED = (
    *("--model.text.positions_resize", "stretch_tail"),
    *("--stages.reduced.tokens.text_tokens", "77", "--stages.full.tokens.text_tokens", "248"),
)


def by_fours(table: np.ndarray) -> np.ndarray:
    """Long-CLIP's table of T rows, row by row in float64: 20, and four for each of the others."""
    rows = [*table[:20]]
    for place in range(20, len(table)):
        step = (table[place + 1] - table[place]) if place + 1 < len(table) else (
            table[place] - table[place - 1]
        )  # fmt: skip
        rows += [table[place] + quarter * step / 4 for quarter in range(4)]
    return np.stack(rows)


def test_the_table_is_long_clips():
    draws = np.random.default_rng(0)
    worst = 0.0
    for rows in (22, 77):
        table = draws.normal(size=(rows, 5)).astype(np.float32)
        wanted = by_fours(table.astype(np.float64))
        assert len(wanted) == 4 * rows - 60
        found = stretch_tail_positions(torch.from_numpy(table), len(wanted))
        assert np.array_equal(found[:20].numpy(), table[:20])
        worst = max(worst, float(np.abs(found.numpy() - wanted).max()))
        back = stretch_tail_positions(found, rows)
        worst = max(worst, float(np.abs(back.numpy() - table).max()))
        for tokens in (1, 20, rows):
            assert np.array_equal(stretch_tail_positions(back, tokens).numpy(), table[:tokens])
    # Another factor: straight lines stay straight, from row 20 on with another slope.
    line = torch.arange(32.0)[:, None]
    wanted = np.concatenate([np.arange(20), 20 + np.arange(57) * 12 / 57])
    worst = max(worst, float(np.abs(stretch_tail_positions(line, 77)[:, 0] - wanted).max()))
    assert worst < 5e-6, f"largest difference {worst:.1e}"


def test_a_table_that_is_too_short_to_stretch_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"from 21 text tokens to 30: .* choose interpolate"):
        stretch_tail_positions(torch.zeros(21, 4), 30)
    words = ["--config", str(TINY), "--model.text.positions_resize", "stretch_tail"]
    with pytest.raises(ValueError, match=r"text_tokens=12 after 6 of stages\.reduced") as refusal:
        parse(words)
    assert "22 or more, or choose interpolate" in str(refusal.value)
    parse([*words, "--stages.reduced.tokens.text_tokens", "22"])


def test_the_recipe_ends_in_248_text_tokens_from_77():
    recipe = parse(["--config", str(ROOT / "pretrain/recipes/b16_long.yaml"),
                    "--data.train", "data", "--run_dir", "run"])[0]  # fmt: skip
    tokens = [stage.tokens.text_tokens for stage in recipe.stages.values()]
    assert tokens[-2:] == [77, 4 * 77 - 3 * 20]
    last = recipe.stages["long_248"]
    peak = last.base_learning_rate * last.global_batch_samples / 256
    assert (last.global_batch_samples, peak) == (2048, pytest.approx(1e-6))  # train.md's table
    assert recipe.model.text.positions_resize == "stretch_tail"


@pytest.fixture(scope="module")
def long_run(tiny_dataset, tmp_path_factory) -> Path:
    """6 steps with 77 text tokens, 4 with 248; checkpoints at 3, 6, 9 and 10."""
    run_dir = tmp_path_factory.mktemp("long") / "run"
    ended = train(run_dir, tiny_dataset, *STRETCHED, "--checkpoint.keep", "9")
    assert ended.code == 0, ended.output
    return run_dir


@pytest.mark.soak
def test_the_next_stage_begins_with_the_stretched_table_and_resumes(
    long_run, tiny_dataset, tmp_path
):
    tables = [
        load_file(long_run / f"stages/{stage}.safetensors")[TABLE].double().numpy()
        for stage in ("reduced", "full")
    ]
    # Four steps of AdamW at a peak of 8e-3 x 16 / 256 = 5e-4.
    moved = np.abs(by_fours(tables[0]) - tables[1])
    assert len(moved) == 248 and 1e-5 < moved.max() < 4 * 5e-4, moved.max()
    for step in (6, 9):  # at the border of the stages, and inside the last one
        run_dir = tmp_path / str(step)
        shutil.copytree(long_run, run_dir)
        for path in (run_dir / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        (run_dir / "stages/full.safetensors").unlink()
        ended = train(run_dir, tiny_dataset, *STRETCHED, "--checkpoint.keep", "9")
        assert ended.code == 0, ended.output
        file = "stages/full.safetensors"
        assert (run_dir / file).read_bytes() == (long_run / file).read_bytes(), step


def test_open_clip_reads_248_tokens(long_run, tmp_path):
    export(run_dir=long_run, out=tmp_path / "theirs", format="open_clip")
    export(run_dir=long_run, out=tmp_path / "ours", format="native")
    config = json.loads((tmp_path / "theirs/open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["context_length"] == 248
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'theirs'}")
    tokenize, ours = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}"), load(
        tmp_path / "ours"
    )  # fmt: skip
    texts = ["red apple", "a cup of tea beside a plate of cake and a slice of bread, " * 12]
    ids = tokenize(texts)
    assert torch.equal(ids, ours.text_ids(texts)) and ids.shape == (2, 248)
    assert (ids[1] != ids[0, -1]).sum() > 200  # most of the context is text
    with torch.inference_mode():
        theirs = model.eval().encode_text(ids, normalize=True)
    worst = float((theirs - ours.encode_texts(texts)).abs().max())
    assert worst < 1e-5, f"largest difference {worst:.1e}"
