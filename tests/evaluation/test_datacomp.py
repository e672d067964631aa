"""DataComp's sets in clip-benchmark's layout: open_clip's embeddings of the same weights, its
metrics written plainly in float64 and by scikit-learn, give the same figures."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import open_clip
import pytest
import torch
from commands import evaluate, export
from judged import last_figures
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score
from webdataset_sets import (
    CLASSES,
    SUBGROUPS,
    TEMPLATES,
    drawings,
    write_captioned,
    write_classes,
    write_tars,
)

from pretrain.evaluation.datacomp.names import SETS
from pretrain.evaluation.options import DataCompOptions, EvaluateOptions, SweepOptions
from pretrain.export.native import load
from pretrain.report.command import write_report
from pretrain.report.options import ReportOptions

CUES = ["apple", "Cup", "oven", "tea"] * 10


class Judge:
    """The exported model in open_clip: embeddings in float64."""

    def __init__(self, folder: Path, pixels_of) -> None:
        self.model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.pixels_of = pixels_of

    def images(self, files: list[bytes]) -> np.ndarray:
        with torch.inference_mode():
            pixels = self.pixels_of([Image.open(io.BytesIO(file)) for file in files])
            return self.model.encode_image(pixels, normalize=True).double().numpy()

    def texts(self, texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return self.model.encode_text(self.tokenize(texts), normalize=True).double().numpy()

    def classes(self, files: list[bytes]) -> np.ndarray:
        """(n, C) scores by the mean over the templates, as clip-benchmark's classifier."""
        rows = [self.texts([one.format(c=name) for one in TEMPLATES]).mean(0) for name in CLASSES]
        rows = [row / np.linalg.norm(row) for row in rows]
        return self.images(files) @ np.stack(rows).T


def class_metrics(scores: np.ndarray, places: np.ndarray) -> dict[str, float]:
    order = np.argsort(-scores, axis=1)
    return {
        "acc1": float((order[:, 0] == places).mean()),
        "acc5": float((order[:, :5] == places[:, None]).any(1).mean()),
        "mean_per_class_recall": float(balanced_accuracy_score(places, order[:, 0])),
    }


def retrieval_metrics(scores: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """scores (pictures, texts) and each text's picture: a hit is any own one among the first k."""
    own = owner[None, :] == np.arange(len(scores))[:, None]
    found = {}
    for name, table, matches in (("text", scores, own), ("image", scores.T, own.T)):
        order = np.argsort(-table, axis=1)
        hits = np.take_along_axis(matches, order, axis=1)
        for k in (1, 5, 10):
            found[f"{name}_retrieval_recall@{k}"] = float(hits[:, :k].any(1).mean())
    recalls = [found[f"{name}_retrieval_recall@1"] for name in ("text", "image")]
    return {**found, "mean_recall@1": sum(recalls) / 2}


def save_winogavil(folder: Path, files: list[bytes]) -> list[tuple[list[int], list[bool]]]:
    """Forty cues with 5, 10 or 12 candidates; (candidates, whether each is associated)."""
    draws, rows, asked = np.random.default_rng(1), [], []
    for cue, count in zip(CUES, [5, 10, 12, 12] * 10, strict=True):
        chosen = draws.choice(len(files), count, replace=False).tolist()
        names = [f"picture {one}" for one in chosen]
        asked.append((chosen, [at < 3 for at in range(count)]))
        rows.append({
            "cue": cue, "candidates": names, "associations": names[:3],
            "candidate_images": [{"bytes": files[one], "path": None} for one in chosen],
        })  # fmt: skip
    text = datasets.Sequence(datasets.Value("string"))
    features = {"cue": datasets.Value("string"), "candidates": text, "associations": text,
                "candidate_images": datasets.Sequence(datasets.Image())}  # fmt: skip
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(folder)
    return asked


def test_the_figures_are_clip_benchmarks_and_datacomps(tiny_run, tmp_path, capsys):
    table = drawings()
    files = table["image"].to_list()
    places = [SUBGROUPS.index(one) for one in table["subgroup"]]
    assert len(files) == 70 and len(set(places)) > 4
    groups = (np.arange(70) % 4).tolist()
    root = tmp_path / "sets"
    names = {"cifar10": "wds_cifar10_test", "wilds/iwildcam": "wds_wilds-iwildcam_test",
             "wilds/fmow": "wds_wilds-fmow_test", "fairness/geode": "wds_geode_test",
             "fairness/dollar_street": "wds_dollar_street_test",
             "vtab/pets": "wds_vtab-pets"}  # fmt: skip
    for name in names.values():
        write_classes(root / name, files, places, groups)
    captions = write_captioned(root / "wds_flickr30k", table)
    asked = save_winogavil(root / "winogavil", files)

    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    export(run_dir=tiny_run, out=tmp_path / "theirs", format="open_clip")
    options = DataCompOptions(folder=root, results=tmp_path / "results.jsonl", batch_samples=16)
    evaluate(model=tmp_path / "ours", datacomp=options, out=tmp_path / "out.json")

    ours = load(tmp_path / "ours")
    judge = Judge(tmp_path / "theirs", ours.pixels)
    scores, target = judge.classes(files), np.array(places)
    plain = class_metrics(scores, target)
    order = np.argsort(-scores, axis=1)
    hits1, hits5 = order[:, 0] == target, (order[:, :5] == target[:, None]).any(1)

    def worst(hits: np.ndarray) -> float:
        return min(hits[np.array(groups) == group].mean() for group in range(4))

    macro = f1_score(target, order[:, 0], average="macro", labels=sorted(set(places)))
    wanted = {
        "cifar10": plain | {"main_metric": plain["acc1"]},
        "vtab/pets": plain | {"main_metric": plain["mean_per_class_recall"]},
        "wilds/iwildcam": plain | {"F1-macro_all": macro, "main_metric": macro},
        "wilds/fmow": plain | dict.fromkeys(["acc_worst_region", "main_metric"], worst(hits1)),
        "fairness/geode": plain | dict.fromkeys(["acc_wg", "main_metric"], worst(hits1)),
        "fairness/dollar_street": plain
        | dict.fromkeys(["acc_top5_wg", "main_metric"], worst(hits5)),
    }
    texts = [text for own in captions for text in own]
    owner = np.repeat(np.arange(len(files)), [len(own) for own in captions])
    found = retrieval_metrics(judge.images(files) @ judge.texts(texts).T, owner)
    wanted["retrieval/flickr30k"] = found | {"main_metric": found["mean_recall@1"]}
    pictures, jaccard = judge.images(files), []
    cues = judge.texts(["An apple", "A cup", "An oven", "A tea"] * 10)
    for (candidates, truth), cue in zip(asked, cues, strict=True):
        chosen = np.argsort(pictures[candidates] @ cue)[-sum(truth) :]
        jaccard.append(jaccard_score(truth, np.isin(np.arange(len(truth)), chosen)))
    score = {count: np.mean([one for (candidates, _), one in zip(asked, jaccard, strict=True)
                             if len(candidates) == count]) for count in (5, 10, 12)}  # fmt: skip
    many = (score[10] + 2 * score[12]) / 3
    wanted["misc/winogavil"] = {
        "avg_jaccard_score": np.mean(jaccard),
        **{f"jaccard_score_{count}": value for count, value in score.items()},
        **{"jaccard_score_5-6": score[5], "jaccard_score_10-12": many, "main_metric": many},
    }

    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    told = {line["key"]: line["metrics"] for line in lines}
    assert {line["key"]: line["dataset"] for line in lines} == {key: SETS[key][0] for key in wanted}
    assert told.keys() == wanted.keys()
    off = {
        (key, name): abs(told[key][name] - value)
        for key, metrics in wanted.items()
        for name, value in metrics.items()
    }
    assert all(told[key].keys() == metrics.keys() for key, metrics in wanted.items())
    largest = max(off, key=lambda place: off[place])
    assert off[largest] < 1e-6, f"largest difference {off[largest]:.1e}, of {largest}"
    assert 0 < many < 1 and 0 < plain["acc1"] < plain["acc5"] < 1 and plain["acc1"] != worst(hits1)

    figures = last_figures(tmp_path / "out.json")
    assert {one["task"] for one in figures} == {"datacomp"}
    (mean,) = [one for one in figures if one["set"] == "mean"]
    main = [metrics["main_metric"] for metrics in wanted.values()]
    assert mean["value"] == pytest.approx(np.mean(main), abs=1e-6)
    assert (mean["n"], mean["of"]) == (8, 38)
    missing = mean["missing"].split(", ")
    assert len(missing) == 30 and "ImageNet 1k" in missing and "Flickr" not in missing
    assert "datacomp  mean  main metric" in capsys.readouterr().out

    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    evaluate(run_dir=run_dir, datacomp=DataCompOptions(folder=root))
    page = write_report([run_dir], ReportOptions()).read_text()
    assert "WinoGAViL" in page and f"{mean['value']:.1%}".replace("%", "") in page


def test_the_list_is_datacomps():
    """38 sets with a main metric; those that are not acc1, typed from its tasklist.yml."""
    assert len(SETS) == 38 and len({name for name, _ in SETS.values()}) == 38
    others = {name: main for name, main in SETS.values() if main != "acc1"}
    assert others == {
        "Caltech-101": "mean_per_class_recall", "FGVC Aircraft": "mean_per_class_recall",
        "Oxford Flowers-102": "mean_per_class_recall", "Oxford-IIIT Pet": "mean_per_class_recall",
        "Flickr": "mean_recall@1", "MSCOCO": "mean_recall@1", "WinoGAViL": "jaccard_score_10-12",
        "iWildCam": "F1-macro_all", "FMoW": "acc_worst_region", "Dollar Street": "acc_top5_wg",
        "GeoDE": "acc_wg",
    }  # fmt: skip


def test_fewer_than_five_classes_have_no_acc5(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("webdataset_sets.CLASSES", CLASSES[:2])
    files = drawings()["image"].to_list()[:30]
    write_classes(
        tmp_path / "wds_renderedsst2_test", files, [row % 2 for row in range(30)], [0] * 30
    )
    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    options = DataCompOptions(folder=tmp_path, results=tmp_path / "results.jsonl")
    evaluate(model=tmp_path / "ours", datacomp=options, out=tmp_path / "out.json")
    metrics = json.loads((tmp_path / "results.jsonl").read_text())["metrics"]
    assert metrics["acc5"] is None and metrics["main_metric"] == metrics["acc1"] > 0
    assert "acc5" not in {one["name"] for one in last_figures(tmp_path / "out.json")}


def test_what_is_wrong_is_said_on_one_line(tiny_run, tmp_path, capsys):
    export(run_dir=tiny_run, out=tmp_path / "ours", format="native")
    root, files = tmp_path / "sets", drawings()["image"].to_list()[:30]
    root.mkdir()

    def told() -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            evaluate(model=tmp_path / "ours", datacomp=DataCompOptions(folder=root))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1, error
        return error

    assert "holds none of the 38 sets" in told()
    (root / "winogavil").mkdir()
    assert "datacomp.folder, WinoGAViL: " in told()
    (root / "winogavil").rmdir()
    write_tars(root / "wds_flickr30k", [{"png": file, "cls": b"0"} for file in files])
    assert "datacomp.folder, Flickr: " in (error := told()) and "needs its KEY.txt" in error
    (root / "wds_flickr30k").rename(tmp_path / "away")
    write_tars(root / "wds_geode_test", [{"png": file, "cls": b"0"} for file in files])
    assert "datacomp.folder, GeoDE: " in (error := told()) and "classnames.txt" in error
    (root / "wds_geode_test/classnames.txt").write_text("a cup\na fork\n")
    (root / "wds_geode_test/zeroshot_classification_templates.txt").write_text("{c}\n")
    assert "acc_wg needs a .npy beside each picture" in told()
    with pytest.raises(ValueError, match=r"datacomp\.results=f holds one model"):
        EvaluateOptions(
            model=root, datacomp=DataCompOptions(folder=root, results=Path("f")),
            tokens=SweepOptions(image_px=[32]),
        )  # fmt: skip
