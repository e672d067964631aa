"""A converted checkpoint gives its own library's embeddings, or is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_datasets import build_food
from tiny_models import check_start, starting_from, stir
from tiny_runs import train_command
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

import pretrain
from pretrain.export.importing import convert
from pretrain.export.native import load
from pretrain.export.open_clip import open_clip_config, open_clip_weights

ROOT = Path(__file__).resolve().parents[2]
CLIPA: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32,
                   "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True,
                   "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
                   "pos_embed_type": "sin_cos_2d"},
    "text_cfg": {"context_length": 12, "vocab_size": 300, "width": 48, "heads": 4, "layers": 2,
                 "hf_tokenizer_name": "local-dir", "tokenizer_kwargs": {"strip_sep_token": True},
                 "pool_type": "last", "no_causal_mask": True, "mlp_ratio": 2.5},
}  # fmt: skip
STOCK: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 14, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PREPARE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
           "resize_mode": "squash", "interpolation": "bilinear"}  # fmt: skip
WORDS = ["a red apple on a table", "two cups of tea", "the dog sleeps under a tree"]


def word_pieces(folder: Path) -> None:
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(c) for c in range(97, 123)]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False,
                                        initial_alphabet=letters)  # fmt: skip
    fast.train_from_iterator(WORDS * 9, trainer)
    from tokenizers.processors import TemplateProcessing

    fast.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip


def an_open_clip_folder(folder: Path, config: dict, prepare: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(
        config["embed_dim"], config["vision_cfg"],
        {n: v for n, v in config["text_cfg"].items() if "tokenizer" not in n},
        quick_gelu=config.get("quick_gelu", False),
        init_logit_bias=config.get("init_logit_bias"),
    )  # fmt: skip
    stir(model)
    save_file({n: w.contiguous() for n, w in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    content = {"model_cfg": config, "preprocess_cfg": prepare or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if "hf_tokenizer_name" in config["text_cfg"]:
        word_pieces(folder)
    return folder


def a_clip_model_folder(folder: Path, eos_token_id: int) -> Path:
    """transformers' own, with a byte-level BPE tokenizer of CLIP's class."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {f"{letter}</w>": 256 + i for letter, i in vocab.items()}
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[])
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=99, image_size=32, patch_size=8,
                              hidden_act="gelu", layer_norm_eps=1e-6, **shape)  # fmt: skip
    text = CLIPTextConfig(hidden_size=16, intermediate_size=64, max_position_embeddings=20,
                          vocab_size=520, eos_token_id=eos_token_id, pad_token_id=513,
                          bos_token_id=512, **shape)  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    stir(model)
    model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in noise]


def difference(pairs) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def figures(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config.get(name) for name in ("logit_scale", "logit_bias")}


@pytest.mark.parametrize("name", ["clipa", "stock", "bias", "custom"])
def test_an_open_clip_folder_keeps_its_embeddings(name, tmp_path):
    config = {"clipa": CLIPA, "stock": STOCK, "bias": {**CLIPA, "init_logit_bias": -3.0},
              "custom": {**CLIPA, "custom_text": True}}[name]  # fmt: skip
    source = an_open_clip_folder(tmp_path / "source", config, PREPARE if name == "clipa" else None)
    worst, notes = convert(source, tmp_path / "out")
    ours = pretrain.load(tmp_path / "out")
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{source}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{source}")
    theirs.eval()
    pixels = torch.stack([prepare(picture) for picture in pictures()])
    found = difference([
        (ours.encode_image(pictures()), theirs.encode_image(pixels, normalize=True)),
        (ours.encode_text(WORDS), theirs.encode_text(tokenize(WORDS), normalize=True)),
    ])  # fmt: skip
    assert max(found, worst) < 1e-5, f"largest difference {found:.1e}, told {worst:.1e}"
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["logit_scale"] == pytest.approx(theirs.logit_scale.exp().item())
    assert ("logit_bias" in written) == (name == "bias")
    if name == "clipa":
        assert ["squash, bilinear" in note for note in notes] == [True, False]
        assert "cut otherwise" in notes[1]  # theirs ends every text in the separator's zero
    if name == "stock":
        assert notes == []
    model = load(tmp_path / "out").model  # and back: the same tensors under open_clip's names
    again = open_clip_weights(model, **figures(written))
    file = load_file(source / "open_clip_model.safetensors")
    before = {tensor.removeprefix("text."): value for tensor, value in file.items()}
    before["token_embedding.weight"] = before["token_embedding.weight"][
        : model.text.vocabulary.size
    ]
    assert again.keys() == before.keys()
    torch.testing.assert_close(again, before, rtol=0, atol=1e-6)
    shape = open_clip_config(model, logit_bias=written.get("logit_bias"))
    rebuilt = open_clip.CLIP(
        shape["embed_dim"], shape["vision_cfg"],
        {n: v for n, v in shape["text_cfg"].items() if "tokenizer" not in n},
        quick_gelu=shape["quick_gelu"], init_logit_bias=shape.get("init_logit_bias"),
    ).eval()  # fmt: skip
    rebuilt.load_state_dict(again)
    ids = load(tmp_path / "out").text_ids(WORDS)
    found = difference([
        (rebuilt.encode_image(pixels, normalize=True), theirs.encode_image(pixels, normalize=True)),
        (rebuilt.encode_text(ids, normalize=True), ours.encode_text(WORDS)),
    ])  # fmt: skip
    assert found < 1e-5, f"exported again: largest difference {found:.1e}"


@pytest.mark.parametrize("eos", [513, 2])
def test_a_clip_model_of_transformers_keeps_its_embeddings(eos, tmp_path):
    source = a_clip_model_folder(tmp_path / "source", eos)
    worst, notes = convert(source, tmp_path / "out")
    assert notes == []
    theirs = CLIPModel.from_pretrained(source).eval()
    pixels = CLIPImageProcessor.from_pretrained(source)(pictures(), return_tensors="pt")
    ids = CLIPTokenizer.from_pretrained(source)(
        WORDS, padding=True, truncation=True, max_length=20, return_tensors="pt"
    )
    output = theirs(**ids, **pixels)
    ours = pretrain.load(tmp_path / "out")
    found = difference([
        (ours.encode_image(pictures()), output.image_embeds),
        (ours.encode_text(WORDS), output.text_embeds),
    ])  # fmt: skip
    assert max(found, worst) < 1e-5, f"largest difference {found:.1e}, told {worst:.1e}"


def changed(section: str, **values) -> dict:
    return {**CLIPA, section: {**CLIPA[section], **values}}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (changed("vision_cfg", ls_init_value=0.1), r"vision_cfg.ls_init_value=0\.1"),
        (changed("vision_cfg", qk_norm=True), "vision_cfg.qk_norm=True"),
        (changed("vision_cfg", attentional_pool=True), "vision_cfg.attentional_pool=True"),
        (changed("vision_cfg", final_ln_after_pool=False), "pool_type='avg' with final_ln_after"),
        (changed("vision_cfg", layers=[1, 1, 1, 1]), r"vision_cfg.layers=\[1, 1, 1, 1\]"),
        (changed("vision_cfg", image_size=[32, 40]), r"vision_cfg.image_size=\[32, 40\]"),
        (
            changed("vision_cfg", timm_model_name="vit"),
            "timm_model_name='vit' with .*timm_pool='avg'",
        ),
        (changed("text_cfg", hf_model_name="roberta"), "text_cfg.hf_model_name='roberta'"),
        (changed("text_cfg", pool_type="first"), "text_cfg.pool_type='first'"),
        (changed("text_cfg", embed_cls=True), "text_cfg.embed_cls=True"),
        ({**CLIPA, "multimodal_cfg": {}}, "model_cfg.multimodal_cfg={}"),
    ],
)
def test_what_the_towers_cannot_express_is_named(config, told, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ValueError, match=told) as raised:
        convert(source, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_other_kinds_and_normalisations_are_named(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"format": 3, "model_type": "clipa"}')
    with pytest.raises(ValueError, match="model_type='clipa'"):
        convert(tmp_path / "own", tmp_path / "out")
    half = {"mean": [0.5] * 3, "std": [0.25] * 3}
    with pytest.raises(ValueError, match=r"mean \(0\.5, 0\.5, 0\.5\)"):
        convert(an_open_clip_folder(tmp_path / "half", CLIPA, half), tmp_path / "out")


def test_weights_of_another_shape_of_network_are_refused(tmp_path):
    source = an_open_clip_folder(tmp_path / "source", CLIPA)
    path = source / "open_clip_model.safetensors"
    weights = load_file(path)
    save_file({n: w for n, w in weights.items() if n != "visual.conv1.weight"}, path)
    with pytest.raises(ValueError, match=r"lacks visual\.conv1\.weight"):
        convert(source, tmp_path / "out")


class Code:
    """A pickle that would run something."""

    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_of_tensors_is_read_and_one_with_code_is_refused(tmp_path):
    source = an_open_clip_folder(tmp_path / "source", CLIPA)
    weights = load_file(source / "open_clip_model.safetensors")
    (source / "open_clip_model.safetensors").unlink()
    torch.save(weights, source / "open_clip_pytorch_model.bin")
    assert convert(source, tmp_path / "out")[0] < 1e-5
    torch.save({**weights, "extra": Code()}, source / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        convert(source, tmp_path / "out")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.soak
def test_a_converted_folder_is_evaluated_and_trained_on(tmp_path):
    """The commands as a user gives them: convert, evaluate, and a run that starts from it."""
    shape = {"layers": 1, "width": 16}
    config = {**CLIPA, "vision_cfg": {**CLIPA["vision_cfg"], **shape},
              "text_cfg": {**CLIPA["text_cfg"], **shape}}  # fmt: skip
    source, out = an_open_clip_folder(tmp_path / "source", config), tmp_path / "out"
    ended = run("pretrain.convert", source, out)
    assert ended.returncode == 0, ended.stderr
    assert "largest difference" in ended.stdout.splitlines()[-1]
    refused = run("pretrain.convert", tmp_path, out)
    assert refused.returncode == 2 and "open_clip_config.json" in refused.stderr

    data = build_food(
        tmp_path / "train", "artist = 'noto'", "--tokenizer", str(out / "text.tokenizer")
    )
    ended = run("pretrain.evaluate", "--model", out, "--sets.food", data, "--out", tmp_path / "e")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "e").stat().st_size > 0

    command = train_command(tmp_path / "run", data, *starting_from(out), ranks=1)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    check_start(tmp_path / "run", out)
