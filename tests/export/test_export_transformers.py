"""transformers loads an exported folder without this repository, with equal embeddings."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from commands import export
from PIL import Image
from safetensors.torch import load_file
from test_export import originals

from pretrain.base import compat
from pretrain.export.hub_classes import ClipaConfig, ClipaModel
from pretrain.export.native import load
from pretrain.models.image_tower import ImageTower
from pretrain.models.options import ImageTowerOptions

TEXTS = ["red apple", "", "a cup of tea with a very long caption " * 5, "  Red\u00a0APPLE <s>"]
# Runs where `pretrain` cannot be imported and nothing can be fetched.
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
compat = importlib.util.module_from_spec(importlib.util.spec_from_file_location("c", sys.argv[5]))
compat.__spec__.loader.exec_module(compat)
compat.make_torchvision_importable()  # a torchvision of another device does not matter here
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline
assert importlib.util.find_spec("pretrain") is None
folder, files = sys.argv[1], sorted(Path(sys.argv[2]).iterdir())
texts = json.loads(sys.argv[3])
pictures = [Image.open(file) for file in files]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    inputs = processor(images=pictures, text=texts, return_tensors="pt")
    short = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    out = model(**inputs)
    save_file({
        "pixels": inputs["pixel_values"], "images": out.image_embeds, "texts": out.text_embeds,
        "short": model.get_text_features(short["input_ids"]).pooler_output,
        "logits": out.logits_per_image.contiguous(),
    }, sys.argv[4])
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
answer = classify(pictures[8], candidate_labels=texts, hypothesis_template="{}")
scores = {row["label"]: row["score"] for row in answer}
Path(sys.argv[4] + ".json").write_text(json.dumps(scores))
"""


@pytest.mark.parametrize("positions", ["sincos", "sincos_jax"])
def test_tables_that_are_no_weights_are_the_towers_own(positions):
    """transformers makes a model without them, and asks for them afterwards."""
    tower = {"width": 32, "depth": 1, "heads": 2}
    model = ClipaModel(
        ClipaConfig(
            model={
                "image": {**tower, "patch_px": 8, "positions": positions},
                "text": tower,
                "embed_dim": 16,
            },
            vocabulary={"size": 50, "pad_id": 0, "bos_id": 1, "eos_id": 2},
            image_px=32,
            text_tokens=8,
        )
    )
    options = ImageTowerOptions(**model.config.model["image"])
    wanted = ImageTower(options, image_px=32, explicit_attention=False).positions
    model.image.positions.zero_()
    model._init_weights(model.image)
    assert torch.equal(model.image.positions, wanted) and wanted.any()


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    export(run_dir=tiny_run, out=folder)
    return folder


def test_transformers_gives_the_same_embeddings_and_pixels(exported, tmp_path):
    folder = shutil.move(exported, tmp_path / "copied")  # no path of the run is inside
    for place, file in enumerate(originals()):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / f"{place:02d}").write_bytes(file)
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "pictures"),
         json.dumps(TEXTS), str(tmp_path / "out.safetensors"), compat.__file__],
        cwd=tmp_path, capture_output=True, text=True,
        env={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is not supported for" not in done.stderr and "newly initialized" not in done.stderr
    theirs, ours = load_file(str(tmp_path / "out.safetensors")), load(folder)
    pictures = [Image.open(io.BytesIO(file)) for file in originals()]
    pixels = ours.pixels(pictures)
    assert torch.equal(theirs["pixels"], pixels), (theirs["pixels"] - pixels).abs().max()
    images, texts = ours.encode_images(pictures), ours.encode_texts(TEXTS)
    for name, expected in {"images": images, "texts": texts, "short": texts}.items():
        worst = float((theirs[name] - expected).abs().max())
        assert worst < 1e-5, f"{name}: largest difference {worst:.1e}"
    logits = ours.logit_scale * images @ texts.T
    assert torch.allclose(theirs["logits"], logits, atol=1e-3)
    scores = json.loads((tmp_path / "out.safetensors.json").read_text())
    assert [scores[text] for text in TEXTS] == pytest.approx(
        logits[8].softmax(0).tolist(), abs=1e-4
    )
