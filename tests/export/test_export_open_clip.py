"""open_clip loads an exported folder by name, with equal embeddings and our token ids."""

import json

import open_clip
import pytest
import torch
from commands import export
from PIL import Image

from pretrain.export.native import load


def test_open_clip_gives_the_same_embeddings(tiny_run, tmp_path, capsys):
    folder = tmp_path / "theirs"
    export(run_dir=tiny_run, out=folder, format="open_clip")
    assert "pictures and texts that open_clip prepares" in capsys.readouterr().out
    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    ours = load(tmp_path / "ours")
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    texts = ["red apple", "a cup of tea with a very long caption " * 5, "x"]
    assert torch.equal(tokenize(texts), ours.text_ids(texts))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (90, 90, 3), generator=generator, dtype=torch.uint8)
    pictures = [Image.fromarray(noise.numpy()), Image.new("RGB", (60, 60), "red")]
    pixels = ours.pixels(pictures)
    # Pillow's and torch's bicubic resize differ by a step of 255 at most on a square picture.
    step = (
        1.01
        / 255
        / min(json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]["std"])
    )
    assert (torch.stack([prepare(picture) for picture in pictures]) - pixels).abs().max() < step
    with torch.inference_mode():
        pairs = [
            (model.encode_image(pixels, normalize=True), ours.encode_images(pictures)),
            (model.encode_text(tokenize(texts), normalize=True), ours.encode_texts(texts)),
        ]
        assert float(model.logit_scale.exp()) == pytest.approx(ours.logit_scale, rel=1e-6)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    assert worst < 1e-5, f"largest difference {worst:.1e}"
