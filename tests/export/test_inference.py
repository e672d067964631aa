"""`pretrain.load`: an exported folder alone embeds as evaluation does, classifies and searches."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import torch
from commands import export
from data_prep_corpus import encoded, options, write_corpus
from PIL import Image
from safetensors.torch import load_file, save_file
from test_export import OWN_COSINE, originals
from tiny_datasets import CORPUS

import pretrain
from data_prep.build.pipeline import build_dataset
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.features import image_features, text_features
from pretrain.export.inference import Model
from pretrain.models.build import build_model
from pretrain.recipe.parsing import read_recipe
from pretrain.run.stage_weights import read_stage_weights

TEXTS = ["red apple", "a drawing of a cup of tea with a very long caption indeed", "x"]


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> Path:
    """The tiny run's export, moved away from the run."""
    folder = tmp_path_factory.mktemp("inference") / "model"
    export(run_dir=tiny_run, out=folder, format="native")
    return Path(shutil.move(folder, folder.with_name("moved")))


def cmyk_files() -> list[bytes]:
    """Drawings as CMYK JPEGs of the highest quality, with their RGB conversion by Pillow."""
    corpus = polars.read_parquet(CORPUS).filter(polars.col("artist") == "noto")
    drawings = [Image.open(io.BytesIO(file)).convert("RGB") for file in corpus["image"][:4]]
    return [encoded(one.convert("CMYK"), "JPEG", quality=100, subsampling=0) for one in drawings]


def test_it_embeds_what_the_evaluator_embeds(tiny_run, tiny_dataset, exported, tmp_path):
    """Alpha, EXIF, 16 bits and CMYK: from files here, from a built dataset in the evaluator."""
    files = [*originals(), *cmyk_files()]
    captions = [f"drawing number {place}" for place in range(len(files))]
    source = write_corpus(tmp_path / "source.parquet", {"image": files, "caption": captions})
    tokenizer = tiny_dataset / "tokenizer.model"
    build_dataset(options(source, tmp_path / "set", tiers="full:100", tokenizer=tokenizer))
    dataset = Dataset(tmp_path / "set", "full")
    (name,) = dataset.manifest.captions
    order = [captions.index(dataset.read_json(row)["captions"][name]) for row in range(len(files))]
    for place, file in enumerate(files):
        (tmp_path / f"{place}.picture").write_bytes(file)

    recipe = read_recipe(tiny_run)
    own = build_model(
        recipe.model,
        tokens=recipe.stages["full"].tokens,
        vocabulary=dataset.vocabulary,
        device=torch.device("cpu"),
        weights=read_stage_weights(tiny_run, "full")[0],
    ).eval()
    model = pretrain.load(exported)
    evaluated = image_features(own, dataset, recipe.data.normalisation, 8)
    embedded = model.encode_image([tmp_path / f"{place}.picture" for place in order])
    cosines = embedded @ evaluated.T
    assert cosines.diagonal().min() > OWN_COSINE, cosines.diagonal().tolist()
    assert torch.equal(cosines.argmax(dim=1), torch.arange(len(files)))

    ids = [dataset.read_ids(row) for row in range(len(files))]
    texts = model.encode_text([captions[place] for place in order])
    worst = float((texts - text_features(own, ids, 7)).abs().max())
    assert worst < 1e-6, f"largest difference {worst:.1e}"


def test_batches_do_not_matter_and_vectors_are_unit_fp32(exported):
    pictures = [Image.open(io.BytesIO(file)) for file in originals()[:7]]
    few, all_at_once = (Model(exported, batch=size) for size in (3, 64))
    for one, other in (
        (few.encode_image(pictures), all_at_once.encode_image(pictures)),
        (few.encode_text(TEXTS * 3), all_at_once.encode_text(TEXTS * 3)),
    ):
        assert one.dtype == torch.float32
        assert torch.allclose(one.norm(dim=1), torch.ones(len(one)))
        assert (one - other).abs().max() < 1e-6
    assert few.encode_image([]).shape == (0, few.embed_dim)


def test_classes_and_search_follow_from_the_embeddings(exported):
    model = pretrain.load(exported)
    pictures = [Image.open(io.BytesIO(file)) for file in originals()[:6]]
    classes, templates = ["apple", "pear", "cup"], ["a {}", "a drawing of a {}."]
    config = json.loads((exported / "config.json").read_text())
    images = model.encode_image(pictures).double()
    means = torch.stack(
        [model.encode_text([t.format(c) for t in templates]).double().mean(0) for c in classes]
    )
    logits = config["logit_scale"] * images @ (means / means.norm(dim=1, keepdim=True)).T
    expected = logits.softmax(1)
    for found, shares in zip(
        model.classify(pictures, classes, templates=templates, top=9), expected, strict=True
    ):
        assert [name for name, _ in found] == [classes[i] for i in shares.argsort(descending=True)]
        assert [share for _, share in found] == pytest.approx(
            sorted(shares.tolist(), reverse=True), abs=1e-4
        )

    scores = images @ model.encode_text(["red apple"])[0].double()
    order = scores.argsort(descending=True)[:3].tolist()
    for where in (pictures, model.encode_image(pictures)):
        found = model.search("red apple", where, top=3)
        assert [place for place, _ in found] == order
        assert [score for _, score in found] == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert model.search(pictures[4], pictures, top=1)[0] == (4, pytest.approx(1, abs=1e-5))


def test_importing_the_package_stays_cheap():
    code = "import sys, pretrain; assert callable(pretrain.load) and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def broken(exported: Path, tmp_path: Path, how: str) -> Path:
    folder = Path(shutil.copytree(exported, tmp_path / "broken"))
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "no config":
        config.unlink()
    elif how == "cut config":
        config.write_text(config.read_text()[:200])
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "no weights":
        weights.unlink()
    elif how == "other weights":
        tensors = load_file(str(weights))
        tensors.popitem()
        save_file(tensors, str(weights))
    elif how == "other tokenizer":
        with (folder / "text.tokenizer").open("ab") as file:
            file.write(b"\0")
    elif how == "other format":
        config.write_text(json.dumps({**json.loads(config.read_text()), "format": 1}))
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no config", r"half-written exported model; write it again"),
        ("cut config", r"config\.json is not whole JSON.*write it again"),
        ("cut weights", r"model\.safetensors is missing or half written.*write it again"),
        ("no weights", r"model\.safetensors is missing or half written.*write it again"),
        ("other weights", r"does not fit config\.json.*missing.*write it again"),
        ("other tokenizer", r"not the tokenizer of the exported model.*put its own file back"),
        ("other format", r"export format 1, this version of the package reads 3"),
    ],
)
def test_a_folder_that_is_no_whole_export_is_refused(exported, tmp_path, how, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told) as raised:
        pretrain.load(broken(exported, tmp_path, how))
    assert "\n" not in str(raised.value)


def test_an_export_over_another_is_never_half_of_each(tiny_run, exported, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(exported, tmp_path / "twice"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pretrain.export.native.write_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        export(run_dir=tiny_run, out=folder, format="native")
    assert [path.name for path in tmp_path.iterdir()] == ["twice"]
    for path in exported.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    pretrain.load(folder)


def test_bad_input_is_answered_on_one_line(exported, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = encoded(Image.new("RGB", (60, 60), "red"))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    model = pretrain.load(exported)
    picture = Image.new("RGB", (60, 60), "red")
    for call, told in (
        (lambda: model.encode_image([tmp_path / "text.png"]), r"text\.png cannot be read"),
        (lambda: model.encode_image([picture, tmp_path / "cut.png"]), r"cut\.png cannot be read"),
        (lambda: model.encode_image([tmp_path / "none.png"]), r"none\.png cannot be read"),
        (lambda: model.encode_image("cat.png"), "give a list"),
        (lambda: model.encode_text("a cat"), "give a list"),
        (lambda: model.encode_text(["a", "b\ud800"]), "half a character"),
        (lambda: model.classify([picture], ["\udfff"]), "half a character"),
        (lambda: model.classify([picture], []), "classes is empty"),
        (lambda: model.classify([picture], ["cat"], templates=["no place"]), r"exactly one \{\}"),
        (lambda: model.classify([picture], ["cat"], templates=[]), "no template"),
        (lambda: model.search("cat", torch.zeros(3, 7)), r"shape \(3, 7\)"),
        (lambda: pretrain.load(exported, device="cuda:99"), "device='cuda:99' asked for"),
        (lambda: pretrain.load(exported, device="abacus"), "device='abacus' asked for"),
    ):
        with pytest.raises(ValueError, match=told) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_run_without_an_export_is_told_the_command_that_makes_one(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    shutil.rmtree(run / "export", ignore_errors=True)
    with pytest.raises(FileNotFoundError, match=f"python -m pretrain.export --run_dir {run}`"):
        pretrain.load(run)
    export(run_dir=run)
    assert pretrain.load(run).embed_dim == read_recipe(run).model.embed_dim
