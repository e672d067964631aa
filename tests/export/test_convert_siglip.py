"""A SigLIP checkpoint keeps its embeddings, logits and ids, through every door that imports."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import evaluate, export
from forked_runs import train
from judged import last_figures, looked_up
from PIL import Image
from safetensors.torch import load_file, save_file
from siglip_folders import SENTENCES, TEXT_TOKENS, a_siglip_folder, an_open_clip_siglip_folder
from tiny_datasets import build_food
from tiny_models import check_start, starting_from
from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

import pretrain
from pretrain.export.importing import convert
from pretrain.export.native import export_options, load

CAPTIONS = [
    "A red apple, on the table!", '"Two cups" of tea (and a book)...', "the dog's tree; under_it",
    "ODYSSEUS ΟΔΥΣΣΕΥΣ İstanbul",
    "ＦＵＬＬ width　space", "un café № ½", "a\tb\nc\x1cd  e ", "▁ a▁b",
    "", "!!!", " ".join(SENTENCES),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, float, list[str]]:
    """(transformers' folder, ours, the largest difference told, notes)"""
    base = tmp_path_factory.mktemp("siglip")
    source = a_siglip_folder(base / "source")
    worst, notes = convert(source, base / "out")
    return source, base / "out", worst, notes


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in noise]


@torch.no_grad()
def test_embeddings_and_logits_are_the_original_s(folders):
    source, out, worst, _ = folders
    model = SiglipModel.from_pretrained(source).eval()
    pixels = AutoImageProcessor.from_pretrained(source)(pictures(), return_tensors="pt")
    ids = AutoTokenizer.from_pretrained(source)(
        CAPTIONS, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
    )["input_ids"]
    theirs = model(input_ids=ids, **pixels)
    ours = pretrain.load(out)
    images, texts = ours.encode_image(pictures()), ours.encode_text(CAPTIONS)
    exported = load(out)
    assert exported.logit_bias == pytest.approx(-10.5)
    logits = exported.logit_scale * images @ texts.T + exported.logit_bias
    found = {
        "images": float((images - theirs.image_embeds).abs().max()),
        "texts": float((texts - theirs.text_embeds).abs().max()),
        "logits": float((logits - theirs.logits_per_image).abs().max()),
        "told": worst,
    }
    assert max(found.values()) < 1e-5, found


def test_ids_are_the_original_s(folders):
    source, out, _, notes = folders
    theirs = AutoTokenizer.from_pretrained(source)(
        CAPTIONS, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
    )["input_ids"]
    ours = load(out).text_ids(CAPTIONS)
    wrong = [(c, a.tolist(), b.tolist()) for c, a, b in zip(CAPTIONS, theirs, ours, strict=True)
             if not torch.equal(a, b)]  # fmt: skip
    assert not wrong
    assert not any("cut otherwise" in note for note in notes)


def test_the_folder_says_what_siglip_is(folders):
    _, out, _, _ = folders
    written = json.loads((out / "config.json").read_text())
    assert written["normalisation"] == "inception"
    assert written["preprocessing"]["mean"] == written["preprocessing"]["std"] == [0.5] * 3
    options, _ = export_options(out)
    assert not options.image.cls_token and not options.image_projection
    assert options.image.norm_eps == options.text.norm_eps == 1e-6


@torch.no_grad()
def test_an_open_clip_folder_keeps_embeddings_logits_and_ids(tmp_path):
    source = an_open_clip_siglip_folder(tmp_path / "source")
    worst, _ = convert(source, tmp_path / "out")
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{source}")
    theirs.eval()
    captions = [
        *CAPTIONS[:3],
        " a\tb\nc  d ",
        "hello_world  ÉTÉ",
        "",
    ]  # ftfy leaves these as they are
    ids = open_clip.get_tokenizer(f"local-dir:{source}")(captions)
    exported = load(tmp_path / "out")
    assert torch.equal(exported.text_ids(captions), ids)
    pixels = torch.stack([prepare(picture) for picture in pictures()])
    images, texts = exported.encode_images(pictures()), exported.encode_texts(captions)
    their_images, their_texts = theirs.encode_image(pixels, True), theirs.encode_text(ids, True)
    their_logits = theirs.logit_scale.exp() * their_images @ their_texts.T + theirs.logit_bias
    logits = exported.logit_scale * images @ texts.T + exported.logit_bias
    found = {
        "images": float((images - their_images).abs().max()),
        "texts": float((texts - their_texts).abs().max()),
        "logits": float((logits - their_logits).abs().max()),
        "told": worst,
    }
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize(
    ("vision", "told"),
    [({"timm_pool": "avg"}, "timm_pool='avg'"),
     ({"timm_proj": "linear"}, "timm_proj='linear'"),
     ({"image_size": 64}, "image_size=64"),
     ({"timm_model_name": "vit_tiny_patch16_224"}, "no vision transformer without CLS"),
     ({"timm_model_name": "of_another_timm"}, "unknown to the installed timm")],
)  # fmt: skip
def test_a_timm_tower_of_another_kind_is_named(vision, told, tmp_path):
    source = an_open_clip_siglip_folder(tmp_path / "source")
    path = source / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"] |= vision
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told):
        convert(source, tmp_path / "out")


def test_what_has_no_counterpart_is_named(tmp_path):
    with pytest.raises(ValueError, match="vision_use_head=False"):
        convert(a_siglip_folder(tmp_path / "headless", vision_use_head=False), tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "missing", "named"),
    [
        (a_siglip_folder, "logit_scale", "lacks logit_scale"),
        (a_siglip_folder, "text_model.encoder.layers.0.layer_norm1.weight", "lacks 1 weights"),
        (a_siglip_folder, "vision_model.head.probe", "lacks vision_model.head.probe"),
        (an_open_clip_siglip_folder, "visual.trunk.pos_embed", "lacks visual.trunk.pos_embed"),
        (an_open_clip_siglip_folder, "visual.trunk.blocks.0.norm1.weight", "lacks 1 weights"),
    ],
)
def test_a_weight_that_is_missing_is_named_and_nothing_is_written(make, missing, named, tmp_path):
    source = make(tmp_path / "source")
    [file] = source.glob("*.safetensors")
    weights = load_file(file)
    del weights[missing]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=named):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_it_is_evaluated_tuned_and_exported_again(folders, tmp_path, capsys):
    """From the converted folder on."""
    _, out, _, _ = folders
    vocabulary = ("--tokenizer", str(out / "text.tokenizer"))
    data = build_food(tmp_path / "train", "artist = 'noto'", *vocabulary)
    evaluate(model=out, sets={"food": data}, out=tmp_path / "e")
    assert looked_up(last_figures(tmp_path / "e"), "retrieval")["food"]["image_to_text"]["n"] > 0
    ended = train(
        tmp_path / "run", data, *starting_from(out), "--loss.kind", "sigmoid",
        "--engine.checkpoint_image", "true",
    )  # fmt: skip
    assert ended.code == 0, ended.output[-2000:]
    objective = check_start(tmp_path / "run", out)
    written = json.loads((out / "config.json").read_text())
    assert float(objective["bias"]) == pytest.approx(written["logit_bias"], rel=1e-5)
    capsys.readouterr()
    export(run_dir=tmp_path / "run")
    assert "largest difference" in capsys.readouterr().out
    again = json.loads((tmp_path / "run" / "export" / "preprocessor_config.json").read_text())
    assert again["image_mean"] == again["image_std"] == [0.5] * 3
