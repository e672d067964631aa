"""What open_clip's own training writes becomes a model here, and a training starts from it."""

import json
import shlex
from pathlib import Path

import open_clip
import pytest
import torch
from forked_runs import TINY, train
from safetensors.torch import save_file
from test_convert import STOCK, Code, an_open_clip_folder, difference, pictures
from tiny_datasets import build_food
from tiny_models import check_start, starting_from, stir, write_untrained
from transformers import CLIPConfig

import pretrain
from pretrain.convert import main
from pretrain.export.importing import convert
from pretrain.train import main as start_training

NAME, OTHER = "ViT-tiny-8", "ViT-tiny-16"
TEXTS = ["a red apple on a table", "two cups of tea"]


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two of open_clip's, by names of its own registry."""
    folder = tmp_path_factory.mktemp("model_configs")
    other = {**STOCK, "vision_cfg": {**STOCK["vision_cfg"], "patch_size": 16}}
    for name, config in ((NAME, STOCK), (OTHER, other)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def an_epoch(path: Path, *, half: bool = False, **extra: object) -> torch.nn.Module:
    """epoch_N.pt as open_clip's main.py saves it under DDP, with AdamW's state; its model."""
    model = open_clip.create_model(NAME, **({"init_logit_bias": -3.0} if "siglip" in extra else {}))
    stir(model)
    optimizer = torch.optim.AdamW(model.parameters())
    if half:
        model.half().float()
    state = {f"module.{n}": w.half() if half else w for n, w in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state,
                "optimizer": optimizer.state_dict(), **extra}, path)  # fmt: skip
    return model.eval()


@pytest.mark.parametrize("kind", ["plain", "half", "siglip"])
def test_an_epoch_of_training_keeps_its_embeddings(kind, tmp_path):
    file, out = tmp_path / "epoch_1.pt", tmp_path / "out"
    more = {"siglip": True} if kind == "siglip" else {}
    theirs = an_epoch(file, half=kind == "half", **more)
    told, _ = convert(file, out, NAME)
    ours = pretrain.load(out)
    prepare = open_clip.image_transform(32, is_train=False)  # its defaults: OpenAI's mean and std
    pixels = torch.stack([prepare(picture) for picture in pictures()])
    ids = open_clip.get_tokenizer(NAME)(TEXTS)
    worst = difference([
        (ours.encode_image(pictures()), theirs.encode_image(pixels, normalize=True)),
        (ours.encode_text(TEXTS), theirs.encode_text(ids, normalize=True)),
    ])  # fmt: skip
    assert max(worst, told) < 1e-5, f"largest difference {worst:.1e}, told {told:.1e}"


def test_what_is_wrong_with_a_file_is_one_line(tmp_path, capsys):
    file, out = tmp_path / "epoch_1.pt", tmp_path / "out"
    an_epoch(file)

    def refusal(*more: str) -> str:
        assert main([str(file), str(out), *more]) == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told and not out.exists(), told
        return told

    assert "by --open-clip-name" in refusal()
    assert f"nearest are {NAME}" in refusal("--open-clip-name", "ViT-tiny8")
    told = refusal("--open-clip-name", OTHER)
    assert "visual.positional_embedding is (17, 32), (5, 32) in that architecture" in told, told
    an_epoch(file, args=Code())
    assert "holds more than tensors" in refusal("--open-clip-name", NAME)
    folder = an_open_clip_folder(tmp_path / "folder", STOCK)
    assert main([str(folder), str(out), "--open-clip-name", NAME]) == 2
    assert "leave the option out" in capsys.readouterr().err


def start_refused(run_dir: Path, dataset: Path, words: str, capsys) -> str:
    """The one line of a training that cannot start."""
    capsys.readouterr()
    tiny = ["--config", str(TINY), "--data.train", str(dataset), "--run_dir", str(run_dir)]
    assert start_training([*tiny, *shlex.split(words)]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told and not run_dir.exists(), told
    return told


@pytest.mark.soak
def test_a_training_starts_from_it_by_its_recipe(tmp_path, capsys):
    """own.yaml's way: a recipe, the model's recipe.yaml behind it, and the start. What does not fit
    says where the fitting words are."""
    file, out = tmp_path / "epoch_1.pt", tmp_path / "out"
    an_epoch(file)
    convert(file, out, NAME)
    data = build_food(tmp_path / "data", "artist = 'noto'", "--tokenizer", f"{out}/text.tokenizer")
    few = ("--stages.reduced.steps 2 --stages.reduced.warmup_steps 0 --stages.full.steps 1 "
           "--stages.full.warmup_steps 0")  # fmt: skip
    ended = train(tmp_path / "run", data, *starting_from(out), *few.split())
    assert ended.code == 0, ended.output[-2000:]
    check_start(tmp_path / "run", out)

    own, start = f"--config {out}/recipe.yaml", f"--start.export {out}"

    def refusal(words: str, dataset: Path = data) -> str:
        told = start_refused(tmp_path / "refused", dataset, words, capsys)
        assert str(out / "recipe.yaml") in told, told
        return told

    assert "check model." in refusal(start)  # the tiny recipe's own model
    told = refusal(f"{own} {start} --model.text.gelu exact")
    assert "model.text.gelu=quick, this recipe has exact" in told
    told = refusal(f"{own} {start} --data.normalisation imagenet")
    assert "data.normalisation=openai, this recipe has imagenet" in told
    assert "--start.accept_differences true" in told
    pieces = build_food(tmp_path / "pieces", "artist = 'noto'")
    assert f"--tokenizer {out}/text.tokenizer" in refusal(f"{own} {start}", pieces)
    (out / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(f"{own} {start}")


@pytest.mark.soak
def test_other_pixels_can_be_accepted(tmp_path, tiny_dataset):
    model = write_untrained(tmp_path / "model", tiny_dataset)
    words = [*starting_from(model), "--data.normalisation", "openai"]
    assert train(tmp_path / "run", tiny_dataset, *words).code == 2
    ended = train(tmp_path / "run", tiny_dataset, *words, "--start.accept_differences", "true")
    assert ended.code == 0, ended.output[-2000:]


def test_a_foreign_model_is_to_be_converted_first(tmp_path, tiny_dataset, capsys):
    file, folder = tmp_path / "epoch_1.pt", an_open_clip_folder(tmp_path / "folder", STOCK)
    an_epoch(file)
    CLIPConfig().save_pretrained(tmp_path / "transformers")
    save_file({"a": torch.zeros(1)}, tmp_path / "transformers/model.safetensors")
    for source, name in ((file, " --open-clip-name NAME"), (folder, ""),
                         (tmp_path / "transformers", "")):  # fmt: skip
        told = start_refused(tmp_path / "run", tiny_dataset, f"--start.export {source}", capsys)
        assert told.endswith(f"convert it first: python -m pretrain.convert {source} OUT{name}")
