"""Zero-shot classification of other people's labelled sets, against open_clip and by hand."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import open_clip
import polars
import pytest
import torch
from commands import evaluate, export
from data_prep_corpus import encoded
from judged import last_figures, looked_up
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from tiny_datasets import CORPUS

from pretrain.batches.images import evaluation_pixels
from pretrain.evaluation.classification import Classification, class_names
from pretrain.evaluation.labelled import open_labelled
from pretrain.evaluation.options import ClassificationOptions
from pretrain.evaluation.zero_shot import bootstrap_interval, wilson_interval, zero_shot
from pretrain.export.native import load

CLASSES = {"drink": "a drink", "food_fruit": "a fruit", "food_sweet": "a sweet dish"}


def drawings() -> list[tuple[str, bytes]]:
    """(subgroup, file) of drawings of three kinds of food."""
    corpus = polars.read_parquet(CORPUS).filter(
        polars.col("subgroup").str.replace(" ", "_").is_in(list(CLASSES))
        & (polars.col("artist") == "twemoji")
    )
    labels = corpus["subgroup"].str.replace(" ", "_")
    return sorted(zip(labels, corpus["image"], strict=True))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """The same drawings as class folders, as a WebDataset and as a saved `datasets` set."""
    root = tmp_path_factory.mktemp("labelled")
    names = sorted(CLASSES)
    with tarfile.open(root / "set.tar", "w") as tar:
        for place, (label, file) in enumerate(drawings()):
            path = root / "folders" / label / f"{place:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
            for extension, content in (("png", file), ("cls", str(names.index(label)).encode())):
                member = tarfile.TarInfo(f"a.b/{place:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=names)}
    )
    rows = [{"picture": {"bytes": file, "path": None}, "kind": kind} for kind, file in drawings()]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(root / "saved"))
    (root / "names.txt").write_text("\n".join(CLASSES[name] for name in names) + "\n")
    (root / "templates.txt").write_text("a drawing of {}.\n{}\n")
    return {name: root / file for name, file in (
        ("folders", "folders"), ("tar", "set.tar"), ("saved", "saved"), ("names", "names.txt"),
        ("templates", "templates.txt"),
    )}  # fmt: skip


def figures(folder: Path, sets: dict[str, Path], kind: str, out: Path, **more) -> dict:
    task = ClassificationOptions(
        images=sets[kind], classes=sets["names"], templates=sets["templates"], **more
    )
    evaluate(model=folder, classification=task, out=out)
    return looked_up(last_figures(out), "classification")[sets[kind].name][""]


def test_the_figures_are_those_of_open_clips_classifier(tiny_run, sets, tmp_path):
    """The same weights in open_clip, its classifier, counted by numpy in float64."""
    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    export(run_dir=tiny_run, out=tmp_path / "theirs", format="open_clip")
    found = {kind: figures(tmp_path / "ours", sets, kind, tmp_path / "out.json")
             for kind in ("folders", "tar", "saved")}  # fmt: skip
    assert found["folders"] == found["tar"] == found["saved"]
    evaluate(
        run_dir=tiny_run, out=tmp_path / "run.json",
        classification=ClassificationOptions(
            images=sets["folders"], classes=sets["names"], templates=sets["templates"]),
    )  # fmt: skip
    of_run = looked_up(last_figures(tmp_path / "run.json"), "classification")
    assert of_run["folders"][""] == found["folders"]

    ours = load(tmp_path / "ours")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'theirs'}")
    model.eval()
    names, templates = list(dict(sorted(CLASSES.items())).values()), ["a drawing of {}.", "{}"]
    theirs = open_clip.build_zero_shot_classifier(model, ours.text_ids, names, templates)
    task = Classification(ClassificationOptions(
        images=sets["folders"], classes=sets["names"], templates=sets["templates"]
    ))  # fmt: skip
    worst = float((task.classifier(ours.model, ours.tokenizer).T - theirs).abs().max())
    assert worst < 1e-5, f"classifier: largest difference {worst:.1e}"

    pictures = [Image.open(io.BytesIO(file)) for _, file in drawings()]
    own = np.array([sorted(CLASSES).index(label) for label, _ in drawings()])
    with torch.inference_mode():
        features = model.encode_image(ours.pixels(pictures), normalize=True)
    best = (features.double() @ theirs.double()).numpy().argmax(1)
    assert found["folders"]["top1"] == pytest.approx((best == own).mean())
    recalls = [(best[own == kind] == kind).mean() for kind in range(3)]
    assert found["folders"]["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert (found["folders"]["n"], found["folders"]["classes"]) == (len(own), 3)


def test_figures_by_hand():
    classifier = torch.eye(6)
    owner = torch.tensor([0, 0, 0, 1, 2, 5])
    shown = torch.tensor([0, 0, 1, 1, 2, 3])
    result = zero_shot(classifier[shown] + 0.01 * torch.arange(6), owner, classifier)
    assert result["top1"] == pytest.approx(4 / 6)
    assert result["mean_per_class_recall"] == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)
    # Class 0 has the least of all scores wherever it is not shown: row 2 alone misses in five.
    assert result["top5"] == pytest.approx(5 / 6)


def test_intervals():
    # Newcombe 1998, table I: Wilson's interval of 81/263, 15/148 and 0/20.
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                               (0, 20, 0.0, 0.1611)):  # fmt: skip
        assert wilson_interval(hits, n) == pytest.approx([low, high], abs=5e-5)
    right, counts = np.array([40, 10, 30]), np.array([50, 40, 30])
    share = right / counts
    spread = 1.96 * np.sqrt((share * (1 - share) / counts).sum()) / 3  # of independent classes
    low, high = bootstrap_interval(right, counts)
    assert [low, high] == pytest.approx([share.mean() - spread, share.mean() + spread], abs=0.01)


def test_squash_is_open_clips():
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (90, 130, 3)).astype(np.uint8)
    theirs = open_clip.image_transform(
        32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash",
        interpolation="bilinear",
    )(Image.fromarray(picture))  # fmt: skip
    ours = torch.from_numpy(evaluation_pixels(picture, 32, "squash")).permute(2, 0, 1) / 255
    assert (ours - theirs).abs().max() < 1.5 / 255
    crop = torch.from_numpy(evaluation_pixels(picture, 32)).permute(2, 0, 1) / 255
    assert (crop - theirs).abs().max() > 0.1


def test_the_names_and_templates_of_imagenet_are_openais(tmp_path):
    for place in range(1000):
        (tmp_path / f"n{place:08d}").mkdir()
        (tmp_path / f"n{place:08d}" / "0.png").write_bytes(b"not opened")
    task = Classification(ClassificationOptions(
        images=tmp_path, classes=Path("imagenet"), templates=Path("openai_imagenet")
    ))  # fmt: skip
    assert task.names == list(IMAGENET_CLASSNAMES)
    assert task.class_of_image.tolist() == list(range(1000))
    expected = [template("thing") for template in OPENAI_IMAGENET_TEMPLATES]
    assert [template.format("thing") for template in task.templates] == expected


def test_labels_find_their_names(sets, tmp_path):
    folders, tar = (open_labelled("x", sets[kind]) for kind in ("folders", "tar"))
    mapping = tmp_path / "names.yaml"
    mapping.write_text("food_sweet: sweet\nspare: spare\nfood_fruit: fruit\ndrink: a drink\n")
    names, place = class_names(folders, mapping)
    assert names == ["sweet", "spare", "fruit", "a drink"]
    assert (place["drink"], place["food_sweet"]) == (3, 0)
    by_name = tmp_path / "by_name.txt"
    by_name.write_text("food_sweet\nother\nfood_fruit\ndrink\n")
    assert class_names(folders, by_name)[1]["drink"] == 3
    assert class_names(folders, None)[0] == ["drink", "food fruit", "food sweet"]
    assert class_names(tar, by_name)[1] == {"0": 0, "1": 1, "2": 2}


def test_what_is_wrong_is_said_on_one_line(sets, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "torn.tar").write_bytes(sets["tar"].read_bytes()[:1500])
    folders = {"images": sets["folders"]}
    for options, told in (
        ({"images": tmp_path / "none"}, "no such folder"),
        ({"images": tmp_path / "empty"}, "no sub-folder per class"),
        ({"images": tmp_path / "torn.tar"}, r"torn\.tar"),
        ({"images": sets["tar"]}, "labels are numbers"),
        ({**folders, "classes": tmp_path / "empty.txt"}, "is empty"),
        ({**folders, "classes": tmp_path / "two.txt"}, "2 names, the set has 3 classes"),
        ({"images": sets["tar"], "classes": tmp_path / "two.txt"}, r"none for \['2'\]"),
        ({**folders, "classes": Path("imagenette")}, "no such file"),
        ({**folders, "templates": tmp_path / "two.txt"}, r"exactly one \{\}"),
    ):
        with pytest.raises(ValueError, match=told) as raised:
            Classification(ClassificationOptions(**options))
        assert "\n" not in str(raised.value)
    cut = tmp_path / "cut" / "kind" / "a.png"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(encoded(Image.new("RGB", (60, 60), "red"))[:60])
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        open_labelled("x", tmp_path / "cut").read(0)
