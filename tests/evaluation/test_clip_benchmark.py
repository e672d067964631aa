"""clip-benchmark gives an exported model the figures of our evaluator.

It is optional: `pip install --target DIR --no-deps clip-benchmark==1.6.2 numpy==2.3.5`, then
PYTHONPATH=DIR; the test environment has the rest.
"""

import importlib
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

from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.options import ClassificationOptions
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


def metrics(name: str) -> Any:
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("clip-benchmark 1.6.2 needs numpy before 2.4: it makes floats of arrays of one")
    try:
        return importlib.import_module(f"clip_benchmark.metrics.{name}")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed; clip-benchmark is optional")


def test_clip_benchmark_gives_our_figures(tiny_run, tiny_evaluation_set, tmp_path):
    judges = metrics("zeroshot_classification"), metrics("zeroshot_retrieval")
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
