"""An exported model loads back whole, and embeds a picture file as the run's evaluation does."""

import io

import numpy as np
import polars
import pytest
import torch
from commands import export
from data_prep_corpus import encoded, options, write_corpus
from PIL import Image
from tiny_datasets import CORPUS

from data_prep.build.pipeline import build_dataset
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.features import image_features
from pretrain.export.native import load
from pretrain.models.build import build_model
from pretrain.recipe.parsing import read_recipe
from pretrain.run.stage_weights import read_stage_weights

# JPEG's loss at quality 100 leaves 0.999998. To this model two other drawings are up to 0.9988
# alike, and a picture to its untreated self (turned, transparent, clipped) from -0.6 to 0.99987.
OWN_COSINE = 0.99999


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """Folder of the tiny run's export."""
    folder = tmp_path_factory.mktemp("export") / "model"
    export(run_dir=tiny_run, out=folder)
    return folder


def test_export_loads_back_with_equal_embeddings(tiny_run, exported, tmp_path, capsys):
    export(run_dir=tiny_run, out=tmp_path / "model", format="native")
    assert "largest difference after loading 0.0e+00" in capsys.readouterr().out
    model = load(str(exported))
    images = model.encode_images([Image.new("RGB", (60, 80), c) for c in ("red", "blue")])
    texts = model.encode_texts(["red apple", "a cup of tea with a very long caption " * 5])
    assert images.shape == texts.shape == (2, 32)
    assert torch.allclose(images.norm(dim=1), torch.ones(2)) and not torch.equal(*images)
    with pytest.raises(FileNotFoundError, match=r"pretrain\.export"):
        load(tmp_path)


def transparent(drawing: Image.Image) -> bytes:
    """The drawing with its white taken out: on white it looks the same, under it lies black."""
    rgb = np.asarray(drawing).astype(np.float64)
    alpha = 255 - rgb.min(axis=2, keepdims=True)
    colour = 255 * (rgb - 255 + alpha) / np.maximum(alpha, 1)
    return encoded(Image.fromarray(np.concatenate([colour, alpha], 2).round().astype(np.uint8)))


def with_orientation(upright: Image.Image, value: int) -> bytes:
    """A file whose pixels lie as EXIF orientation `value` says and whose picture is `upright`."""
    stored = {
        3: Image.Transpose.ROTATE_180,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[value]
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(upright.transpose(stored), "JPEG", quality=100, subsampling=0, exif=exif)


def sixteen_bit(drawing: Image.Image) -> bytes:
    grey = np.asarray(drawing.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey))


def originals() -> list[bytes]:
    """Real drawings as files with an alpha channel, an EXIF orientation, or 16 bits a pixel."""
    corpus = polars.read_parquet(CORPUS).filter(
        (polars.col("artist") == "noto") & (polars.col("group") == "food & drink")
    )
    wide = (0, 4, 64, 60)
    drawings = [Image.open(io.BytesIO(file)).crop(wide) for file in corpus["image"][:24]]
    turned = zip(drawings[8:16], (3, 5, 6, 8) * 2, strict=True)
    return [
        *map(transparent, drawings[:8]),
        *(with_orientation(drawing, value) for drawing, value in turned),
        *map(sixteen_bit, drawings[16:]),
    ]


def test_a_picture_file_is_embedded_as_evaluation_embeds_its_dataset(
    tiny_run, tiny_dataset, exported, tmp_path
):
    files = originals()
    captions = [f"drawing number {place}" for place in range(len(files))]
    source = write_corpus(tmp_path / "source.parquet", {"image": files, "caption": captions})
    tokenizer = tiny_dataset / "tokenizer.model"
    build_dataset(options(source, tmp_path / "set", tiers="full:100", tokenizer=tokenizer))
    dataset = Dataset(tmp_path / "set", "full")
    (name,) = dataset.manifest.captions
    stored = [dataset.read_json(row)["captions"][name] for row in range(len(dataset))]
    assert sorted(stored) == sorted(captions)

    recipe = read_recipe(tiny_run)
    model = build_model(
        recipe.model,
        tokens=recipe.stages["full"].tokens,
        vocabulary=dataset.vocabulary,
        device=torch.device("cpu"),
        weights=read_stage_weights(tiny_run, "full")[0],
    ).eval()
    evaluated = image_features(model, dataset, recipe.data.normalisation, 8)
    opened = [Image.open(io.BytesIO(files[captions.index(caption)])) for caption in stored]
    embedded = load(exported).encode_images(opened)
    cosines = embedded @ evaluated.T
    own = cosines.diagonal()
    other = (cosines - 2 * torch.eye(len(files))).max()
    print(f"least cosine to its own {own.min():.7f}, greatest to another {other:.7f}")
    assert own.min() > OWN_COSINE, f"cosines to the evaluator's: {own.tolist()}"
    assert torch.equal(cosines.argmax(dim=1), torch.arange(len(files)))
