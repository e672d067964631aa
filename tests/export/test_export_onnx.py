"""ONNX Runtime embeds pictures and texts as the export does, from the ONNX files alone."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import export
from PIL import Image
from test_export import originals
from tiny_models import OPTIONS

from pretrain.dataset.reader import Dataset
from pretrain.export import onnx as module
from pretrain.export.native import ExportedModel, load
from pretrain.models.build import build_model
from pretrain.tokens.options import TokenOptions

TEXTS = ["red apple", "", "a cup of tea with a very long caption " * 5]


def runtime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} of requirements-onnx.txt is not installed")
    return pytest.importorskip(
        "onnxruntime", reason="onnxruntime of requirements-onnx.txt is not installed"
    )


def run(session, name, inputs):
    return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def test_both_towers_agree_for_any_batch_and_the_card_names_them(tiny_run, tmp_path, capsys):
    ort = runtime()
    export(run_dir=tiny_run, out=tmp_path / "model", onnx=True)
    assert "(ONNX: " in capsys.readouterr().out
    folder, ours = tmp_path / "model", load(tmp_path / "model")
    images = ort.InferenceSession(folder / "image.onnx")
    texts = ort.InferenceSession(folder / "text.onnx")
    pictures = [Image.open(io.BytesIO(file)) for file in originals()]
    record = json.loads(images.get_modelmeta().custom_metadata_map["clipa"])
    mean, std = (np.array(record["preprocessing"][name]) for name in ("mean", "std"))
    squares = np.stack([np.asarray(Image.new("RGB", (48, 48), c)) for c in ("red", "navy")])
    plain = torch.from_numpy(((squares / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    drawn = [Image.fromarray(square) for square in squares]
    found = {
        "pictures": run(images, "pixel_values", ours.pixels(pictures)),
        "by the record": run(images, "pixel_values", plain),
        "texts": run(texts, "input_ids", ours.text_ids(TEXTS)),
    }
    wanted = [ours.encode_images(pictures), ours.encode_images(drawn), ours.encode_texts(TEXTS)]
    for (name, embeds), expected in zip(found.items(), wanted, strict=True):
        worst = float((embeds - expected).abs().max())
        assert worst < 1e-5, f"{name}: largest difference {worst:.1e}"
    for one in range(3):
        assert torch.allclose(
            run(texts, "input_ids", ours.text_ids(TEXTS[one : one + 1])),
            wanted[2][[one]],
            atol=1e-5,
        )
    card = (folder / "README.md").read_text()
    assert "`image.onnx`" in card and "`text.onnx`" in card
    export(run_dir=tiny_run, out=folder)  # without: no file of an earlier model stays
    assert not list(folder.glob("*onnx*")) and "onnx" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({"pool": "cls"}, {"causal": True, "pool": "eos", "specials": "bos_eos"}),
        ({"pool": "gap_cls", "pre_norm": True}, {"padding_mask": True, "pool": "mean"}),
        ({"pool": "attention", "positions": "learned", "gelu": "quick"},
         {"causal": True, "padding_mask": True, "pool": "highest_id", "gelu": "quick"}),
    ],
)  # fmt: skip
def test_every_kind_of_tower_is_expressed(image, text, tiny_dataset, tmp_path, monkeypatch):
    ort = runtime()
    options = replace(
        OPTIONS, image=replace(OPTIONS.image, **image), text=replace(OPTIONS.text, **text)
    )
    dataset = Dataset(tiny_dataset, "full")
    own = ExportedModel(
        model=build_model(
            options,
            tokens=TokenOptions(image_px=32, text_tokens=12),
            vocabulary=dataset.vocabulary,
            device=torch.device("cpu"),
        ).eval(),
        tokenizer=dataset.tokenizer(),
        normalisation="imagenet",
        logit_scale=10.0,
        logit_bias=None,
    )
    config = {"model": {"text": {"specials": options.text.specials}}}
    pictures = [Image.open(io.BytesIO(file)) for file in originals()[8:12]]
    # Weights beside the file, as a large model's.
    monkeypatch.setattr(module, "_INLINE_BYTES", 0)
    assert module.write_onnx(tmp_path, own, config, pictures, TEXTS) < 1e-5
    assert (tmp_path / "image.onnx.data").is_file()
    texts = ort.InferenceSession(tmp_path / "text.onnx")
    ids = own.text_ids(TEXTS)
    assert torch.allclose(run(texts, "input_ids", ids), own.encode_texts(TEXTS), atol=1e-5)
    # What does not agree is not left behind.
    monkeypatch.setattr(module, "_TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="gives other embeddings"):
        module.write_onnx(tmp_path, own, config, pictures, TEXTS)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module, "_TOLERANCE", 1e-4)
    for kind, weight in (
        ("text", own.model.text_projection.weight),
        ("picture", own.model.image_projection.weight),
    ):
        weight.data.fill_(float("nan"))
        with pytest.raises(ValueError, match=f"^{kind} embeddings of the run's model are not fin"):
            module.write_onnx(tmp_path, own, config, pictures, TEXTS)
        assert not list(tmp_path.iterdir())


def test_without_the_packages_one_line_says_what_to_install(
    monkeypatch, capsys, tmp_path, tiny_run
):
    monkeypatch.setattr(sys, "path", [])
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit):
        export(run_dir=tiny_run, out=tmp_path / "model", format="native", onnx=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --onnx true needs") and "requirements-onnx.txt" in line
