"""clip-benchmark gives an exported model the figures of our evaluator.

It is optional: `pip install --target DIR --no-deps clip-benchmark==1.6.2 numpy==2.3.5 webdataset
braceexpand`, then PYTHONPATH=DIR; the test environment has the rest.
"""

import importlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from commands import evaluate, export
from judged import last_figures, looked_up
from PIL import Image
from torch import Tensor
from webdataset_sets import SUBGROUPS, drawings, write_captioned, write_classes

from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.options import ClassificationOptions, DataCompOptions
from pretrain.export.native import load

CAPTIONS = ["label", "phrase"]
TEMPLATES = ("a drawing of {}.", "{}")


class Pictures:
    """(batch of pixels, batch of targets), as clip-benchmark reads a loader."""

    def __init__(self, pixels: Tensor, targets: list[Any], classes: list[str]) -> None:
        self.pixels, self.targets, self.classes = pixels, targets, classes
        self.dataset = self

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for at in range(0, len(self.pixels), 16):
            some = self.targets[at : at + 16]
            batch = some if isinstance(some[0], list) else torch.tensor(some)
            yield self.pixels[at : at + 16], batch


def peer(name: str) -> Any:
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("clip-benchmark 1.6.2 needs numpy before 2.4: it makes floats of arrays of one")
    try:
        return importlib.import_module(f"clip_benchmark.{name}")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed; clip-benchmark is optional")


def test_clip_benchmark_gives_our_figures(tiny_run, tiny_evaluation_set, tmp_path):
    judges = peer("metrics.zeroshot_classification"), peer("metrics.zeroshot_retrieval")
    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    export(run_dir=tiny_run, out=tmp_path / "theirs", format="open_clip")
    dataset = Dataset(tiny_evaluation_set, "full")
    pictures = [Image.fromarray(decode(dataset.read(row).jpeg)) for row in range(len(dataset))]
    records = [dataset.read_json(row) for row in range(len(dataset))]
    texts = [[record["captions"][name] for name in CAPTIONS] for record in records]
    assert len({text for own in texts for text in own}) == 2 * len(texts)  # equal ones count twice
    kinds = [record["meta"]["subgroup"].replace(" ", "_") for record in records]
    for row, (kind, picture) in enumerate(zip(kinds, pictures, strict=True)):
        path = tmp_path / "set" / kind / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    evaluate(
        model=tmp_path / "ours",
        sets={"held_out": tiny_evaluation_set},
        captions=CAPTIONS,
        classification=ClassificationOptions(
            images=tmp_path / "set", templates=tmp_path / "templates.txt"
        ),
        out=tmp_path / "out.json",
    )
    record = last_figures(tmp_path / "out.json")

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'theirs'}")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")
    pixels = load(tmp_path / "ours").pixels(pictures)
    classes = sorted(set(kinds))
    named = [kind.replace("_", " ") for kind in classes]
    places = [classes.index(kind) for kind in kinds]
    theirs = judges[0].evaluate(
        model, Pictures(pixels, places, named), tokenize, named,
        [template.replace("{}", "{c}") for template in TEMPLATES], "cpu", amp=False,
    )  # fmt: skip
    ours = looked_up(record, "classification")["set"][""]
    wanted = {"acc1": ours["top1"], "acc5": ours["top5"],
              "mean_per_class_recall": ours["mean_per_class_recall"]}  # fmt: skip
    assert theirs == pytest.approx(wanted, abs=1e-6), (theirs, wanted)
    assert 0 < theirs["acc1"] < theirs["acc5"] < 1

    found = judges[1].evaluate(
        model, Pictures(pixels, texts, []), tokenize, "cpu", amp=False, recall_k_list=[1, 5]
    )
    ours = looked_up(record, "retrieval")["held_out"]
    ways = {"image": "text_to_image", "text": "image_to_text"}  # what is retrieved -> our way
    wanted = {
        f"{kind}_retrieval_recall@{k}": ours[way][f"r@{k}"] for kind, way in ways.items()
        for k in (1, 5)
    }  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-6), (found, wanted)
    assert found["image_retrieval_recall@5"] > 0
    print(theirs, found)


def test_clip_benchmark_reads_the_same_folders(tiny_run, tmp_path):
    """Its own reader of the layout, its own metrics, the model in open_clip."""
    judges = peer("metrics.zeroshot_classification"), peer("metrics.zeroshot_retrieval")
    read = peer("datasets.builder").build_wds_dataset
    table, root = drawings(), tmp_path / "sets"
    places = [SUBGROUPS.index(one) for one in table["subgroup"]]
    write_classes(root / "wds_cifar10_test", list(table["image"]), places, places)
    write_captioned(root / "wds_flickr30k_test", table)
    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    export(run_dir=tiny_run, out=tmp_path / "theirs", format="open_clip")
    options = DataCompOptions(folder=root, results=tmp_path / "results.jsonl")
    evaluate(model=tmp_path / "ours", datacomp=options, out=tmp_path / "out.json")
    lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    told = {line["dataset"]: line["metrics"] for line in lines}

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'theirs'}")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")
    ours = load(tmp_path / "ours")
    found = {}
    for name, folder in (("CIFAR-10", "wds_cifar10_test"), ("Flickr", "wds_flickr30k_test")):
        dataset = read(folder, lambda one: ours.pixels([one])[0], data_dir=str(root / folder))
        pixels, targets = zip(*dataset, strict=True)
        loader = Pictures(torch.stack(pixels), list(targets), dataset.classes)
        if name == "Flickr":
            found[name] = judges[1].evaluate(
                model, loader, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
            )
        else:
            found[name] = judges[0].evaluate(
                model, loader, tokenize, dataset.classes, dataset.templates, "cpu", amp=False
            )
    for name, theirs in found.items():
        off = {metric: abs(told[name][metric] - value) for metric, value in theirs.items()}
        assert len(off) in (3, 6) and max(off.values()) < 1e-6, f"{name}: differences {off}"
        print(name, off)
