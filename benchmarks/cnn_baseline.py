"""A CNN and a bag of words, trained for a given time: the simple model to read a run's figures by.

    python -m benchmarks.cnn_baseline --data data/demo/train --seconds 270 --seed 0 \\
        --sets held_out_artist=data/demo/held_out_artist --out runs/comparison.json

Plain PyTorch in one process, all pictures in memory, nothing tuned. Augmentation, caption
weights and evaluation are those of the demo recipe, so that only the model, its optimizer and
the absence of stages differ.
"""

import math
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli, set_parsing_settings
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.cnn_data import TrainingData, read_images
from benchmarks.cnn_model import Baseline
from benchmarks.comparison_file import put_row, read_rows
from pretrain.data.augment import AUGMENT_DRAWS, AugmentOptions, prepare
from pretrain.data.dataset import Dataset
from pretrain.evaluation.evaluator import EvaluationSet
from pretrain.evaluation.retrieval import retrieval
from pretrain.evaluation.zero_shot import class_embeddings, zero_shot
from pretrain.tokens.tokenizer import PAD_ID

_FORWARD_SAMPLES = 512  # pictures or texts embedded at once in evaluation


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """What the baseline trains on, for how long, and where its row goes."""

    data: Path
    """Training dataset directory."""
    sets: list[str]
    """NAME=DIR, repeatable: evaluation sets (dataset directories of the same tokenizer)."""
    out: Path
    """Comparison file; the row is added, or replaces that of the same name and seed."""
    seconds: float = 270.0
    """Training time by the clock; reading the pictures and evaluating come on top."""
    seed: int = 0
    """Seed of the weights, the order, the captions drawn and the augmentation."""
    name: str = "CNN + bag of words"
    """Name of the row."""
    tier: str = "full"
    """Image tier to read."""
    image_px: int = 32
    """Side of the pictures after resizing."""
    batch_samples: int = 256
    """Pairs per step."""
    learning_rate: float = 2e-3
    """AdamW's peak; falls to 0 by a cosine over the time given."""
    weight_decay: float = 0.1
    """AdamW's weight decay, on matrices and filters."""
    threads: int = 2
    """CPU threads."""
    caption_weights: dict[str, float] = field(
        default_factory=lambda: {"label": 0.4, "keywords": 0.4, "phrase": 0.1, "group": 0.1}
    )
    """Chance of each named caption; captions that a sample lacks are never drawn."""
    prompts: dict[str, str] = field(default_factory=lambda: {"group": "a drawing in the group {}"})
    """Zero-shot by a prompt with one {}: template by metadata column."""
    label_ensembles: list[str] = field(default_factory=lambda: ["subgroup"])
    """Zero-shot by the mean of the training labels of each class: metadata columns."""
    augment: AugmentOptions = field(
        default_factory=lambda: AugmentOptions(
            scale_min=0.8,
            scale_max=1.15,
            rotate_rad=0.2,
            shift=0.12,
            flip=0.3,
            brightness=0.3,
            channel=0.2,
            saturation=0.4,
        )
    )
    """Augmentation of training pictures."""

    def __post_init__(self) -> None:
        if not evaluation_sets(self.sets):
            raise ValueError("no evaluation set: write --sets NAME=DIR, once per set")
        if self.seconds <= 0 or self.batch_samples < 2:
            raise ValueError(
                f"seconds={self.seconds:g}, batch_samples={self.batch_samples}: give a positive "
                "time and at least 2 pairs a step"
            )


def evaluation_sets(sets: list[str]) -> dict[str, Path]:
    """Directory of each evaluation set by its name, from NAME=DIR."""
    pairs = [one.partition("=") for one in sets]
    if not all(name and equals and path for name, equals, path in pairs):
        raise ValueError(f"sets={sets}: write --sets NAME=DIR, once per evaluation set")
    return {name: Path(path) for name, _, path in pairs}


def train(model: Baseline, data: TrainingData, options: BaselineOptions) -> dict[str, float]:
    """Train for the time given; returns what it took."""
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not model.words.weight]
    others = [p for p in model.parameters() if p.ndim <= 1 or p is model.words.weight]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    draw = torch.Generator().manual_seed(options.seed)
    batches = len(data.images) // options.batch_samples
    losses: list[float] = []
    model.train()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - begin) < options.seconds:
        if len(losses) % batches == 0:
            order = torch.randperm(len(data.images), generator=draw)
        at = len(losses) % batches * options.batch_samples
        rows = order[at : at + options.batch_samples]
        rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * elapsed / options.seconds))
        for group in optimizer.param_groups:
            group["lr"] = rate
        drawn = torch.multinomial(data.caption_chances[rows], 1, generator=draw)[:, 0]
        augment = torch.rand(len(rows), AUGMENT_DRAWS, generator=draw)
        pixels = prepare(data.images[rows], augment, options.augment, "imagenet", torch.float32)
        loss = model(pixels, data.captions[rows, drawn])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.log_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
        if len(losses) % 200 == 0:
            print(f"{elapsed:6.1f} s  step {len(losses)}  loss {losses[-1]:.3f}", flush=True)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "cpu_s": time.process_time() - cpu_begin,  # far below seconds x threads: a shared machine
        "samples": len(losses) * options.batch_samples,
        "images_per_s": len(losses) * options.batch_samples / seconds,
        "steps": len(losses),
        "epochs": len(losses) / batches,
        "last_loss": float(np.mean(losses[-batches:])),
    }


@torch.inference_mode()
def evaluate(model: Baseline, training: Dataset, options: BaselineOptions) -> dict[str, Any]:
    """{set: {image_to_text, text_to_image, zero_shot}}, as the evaluator of a run gives them.

    Retrieval is over distinct labels; an equal score of another label counts as ranked before.
    """
    model.eval()
    sets = {
        name: open_set(path, training, options)
        for name, path in evaluation_sets(options.sets).items()
    }
    classifiers = {
        column: classifier(model, training, column, classes_of(sets, column), options)
        for column in (*options.prompts, *options.label_ensembles)
    }
    results: dict[str, Any] = {}
    for name, one in sets.items():
        pictures = read_images(one.dataset, options.image_px)
        images = torch.cat(
            [
                model.encode_image(prepare(p, None, AugmentOptions(), "imagenet", torch.float32))
                for p in pictures.split(_FORWARD_SAMPLES)
            ]
        )
        texts = embed_texts(model, one.caption_ids)
        results[name] = retrieval(images, texts, one.caption_of_image)
        shots = {}
        for column, matrix in classifiers.items():
            place = {label: i for i, label in enumerate(classes_of(sets, column))}
            own = torch.tensor([place[label] for label in one.classes(column)])
            shots[column] = zero_shot(images, own, matrix)
        results[name]["zero_shot"] = shots
    return results


def open_set(path: Path, training: Dataset, options: BaselineOptions) -> EvaluationSet:
    """An evaluation set; ValueError if its ids are of another tokenizer than the training set's."""
    one = EvaluationSet.open(path, options.tier)
    if one.dataset.manifest.tokenizer.sha256 != training.manifest.tokenizer.sha256:
        raise ValueError(
            f"evaluation set {path} was tokenized by another tokenizer than {training.directory}: "
            f"rebuild it with `data_prep build --tokenizer {training.directory}/tokenizer.model`"
        )
    return one


def classes_of(sets: dict[str, EvaluationSet], column: str) -> list[str]:
    """All classes of a metadata column over the evaluation sets, sorted."""
    return sorted({label for one in sets.values() for label in one.classes(column)})


def classifier(
    model: Baseline, training: Dataset, column: str, classes: list[str], options: BaselineOptions
) -> Tensor:
    """(C, embed_dim) of a column's classes: by its prompt, or by the labels seen in training."""
    if column in options.prompts:
        encode = training.tokenizer().encode
        ids = [np.asarray(encode(options.prompts[column].format(name))) for name in classes]
        return class_embeddings(embed_texts(model, ids), torch.arange(len(classes)), len(classes))
    seen = EvaluationSet.open(training.directory, options.tier)
    place = {name: i for i, name in enumerate(classes)}
    labels = zip(seen.caption_of_image.tolist(), seen.classes(column), strict=True)
    pairs = sorted({(caption, place[name]) for caption, name in labels if name in place})
    features = embed_texts(model, [seen.caption_ids[caption] for caption, _ in pairs])
    return class_embeddings(features, torch.tensor([i for _, i in pairs]), len(classes))


def embed_texts(model: Baseline, texts: list[NDArray[np.integer]]) -> Tensor:
    """(m, embed_dim) of texts given as token ids, whole."""
    rows = [torch.from_numpy(ids.astype(np.int64)) for ids in texts]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD_ID)
    return torch.cat([model.encode_text(ids) for ids in padded.split(_FORWARD_SAMPLES)])


def run(options: BaselineOptions) -> dict[str, Any]:
    """Train, evaluate, write the row, return it."""
    read_rows(options.out, options.seconds)  # another budget is refused before training
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    dataset = Dataset(options.data, options.tier)
    for path in evaluation_sets(options.sets).values():
        open_set(path, dataset, options)
    if len(dataset) < options.batch_samples:
        raise ValueError(
            f"batch_samples={options.batch_samples}, {options.data} has {len(dataset)} samples: "
            "choose a smaller --batch_samples"
        )
    data = TrainingData.read(dataset, options.image_px, options.caption_weights)
    model = Baseline(dataset.manifest.tokenizer.vocab_size)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(data.images):,} pictures", flush=True)
    trained = train(model, data, options)
    row = {"name": options.name, "seed": options.seed, "parameters": parameters, **trained}
    row["sets"] = evaluate(model, dataset, options)
    put_row(options.out, options.seconds, row)
    return row


def main() -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    repeated = re.compile(r"^--sets(?==|$)")
    given = [repeated.sub("--sets+", word) for word in sys.argv[1:]]
    try:
        options = auto_cli(BaselineOptions, args=given, as_positional=False)
        row = run(options)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    for name, one in row["sets"].items():
        print(
            f"{name}: R@1 image to text {one['image_to_text']['r@1']:.1%}, "
            f"text to image {one['text_to_image']['r@1']:.1%}"
        )
    print(f"{row['samples']:,} samples in {row['seconds']:.1f} s, row added to {options.out}")


if __name__ == "__main__":
    main()
