"""Checkpoints as the hub holds them: of half precision, and in shards."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from siglip_folders import a_siglip_folder
from test_convert import WORDS, a_clip_model_folder, pictures
from test_convert_refusals import edit, refused
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

import pretrain
from pretrain.export.importing import convert

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def a_folder(kind: str, folder: Path) -> Path:
    return a_siglip_folder(folder) if kind == "siglip" else a_clip_model_folder(folder, 513)


@torch.no_grad()
def check_embeddings(source: Path, out: Path) -> None:
    """Ours against transformers' in float64, from the same stored numbers."""
    model = AutoModel.from_pretrained(source, dtype=torch.float64).eval()
    pixels = AutoImageProcessor.from_pretrained(source)(pictures(), return_tensors="pt")
    length = model.config.text_config.max_position_embeddings
    ids = AutoTokenizer.from_pretrained(source)(
        WORDS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    output = model(input_ids=ids["input_ids"], pixel_values=pixels["pixel_values"].double())
    ours = pretrain.load(out)
    found = {
        "pictures": (ours.encode_image(pictures()) - output.image_embeds).abs().max(),
        "texts": (ours.encode_text(WORDS) - output.text_embeds).abs().max(),
    }
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_in_full(kind, dtype, tmp_path):
    source = a_folder(kind, tmp_path / "source")
    AutoModel.from_pretrained(source).to(dtype).save_pretrained(source)
    assert {w.dtype for w in load_file(source / WEIGHTS).values()} == {dtype}
    assert convert(source, tmp_path / "out")[0] < 1e-5
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert {w.dtype for w in written.values()} == {torch.float32}
    check_embeddings(source, tmp_path / "out")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_shards_are_read(kind, tmp_path):
    source = a_folder(kind, tmp_path / "source")
    convert(source, tmp_path / "whole")
    model = AutoModel.from_pretrained(source)
    (source / WEIGHTS).unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 2 and not (source / WEIGHTS).exists()
    convert(source, tmp_path / "out")
    whole, found = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "out"))
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    check_embeddings(source, tmp_path / "out")


def test_pickled_shards_are_read(tmp_path):
    source = a_folder("clip", tmp_path / "source")
    weights = load_file(source / WEIGHTS)
    (source / WEIGHTS).unlink()
    names = sorted(weights)
    places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for shard in set(places.values()):
        torch.save({n: weights[n] for n in names if places[n] == shard}, source / shard)
    edit(source / "pytorch_model.bin.index.json", weight_map=places, metadata={})
    assert convert(source, tmp_path / "out")[0] < 1e-5


def test_an_index_that_points_elsewhere_or_is_none_is_refused(tmp_path):
    source, out = a_folder("clip", tmp_path / "source"), tmp_path / "out"
    weights = load_file(source / WEIGHTS)
    (source / WEIGHTS).unlink()
    (source / "inside").mkdir()
    one, two = sorted(weights)[:2]
    places = dict.fromkeys(weights, "a.safetensors")
    save_file(weights, source / "a.safetensors", {"format": "pt"})
    save_file({one: weights[one]}, tmp_path / "secret.safetensors")
    save_file({one: weights[one]}, source / "inside" / "b.safetensors")
    elsewhere = (
        "../secret.safetensors", str(tmp_path / "secret.safetensors"), "inside/b.safetensors",
        "..", "", "config.json", "..\\secret.safetensors",
    )  # fmt: skip
    for shard in elsewhere:
        edit(source / INDEX, weight_map={**places, one: shard})
        refused(source, out, INDEX, f"the shard {shard!r}")
    edit(source / INDEX, weight_map={**places, one: "missing.safetensors"})
    refused(source, out, "disagree on the tensor", "a.safetensors")
    edit(source / INDEX, weight_map={"other": "missing.safetensors"})
    refused(source, out, "missing.safetensors")
    edit(source / INDEX, weight_map={n: p for n, p in places.items() if n != two})
    refused(source, out, f"disagree on the tensor {two}")
    for content in ([], {"weight_map": []}, {}):
        (source / INDEX).write_text(json.dumps(content))
        refused(source, out, INDEX)
    edit(source / INDEX, weight_map=places, metadata={})
    assert convert(source, out)[0] < 1e-5
