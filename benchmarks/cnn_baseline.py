"""A CNN and a bag of words, trained for a given time: the simple model to read a run's figures by.

    python -m benchmarks.cnn_baseline --data data/demo/train --seconds 270 --seed 0 \\
        --sets held_out_artist=data/demo/held_out_artist --out runs/comparison.json

Plain PyTorch in one process, fp32, all pictures in memory, nothing tuned. Picture size, batch,
augmentation, caption weights and zero-shot tasks are those of the recipe's first stage, so that
only the model, its optimizer and the absence of stages differ.
"""

import math
import re
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli, set_parsing_settings
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.cnn_data import TrainingData, read_images
from benchmarks.cnn_model import Baseline
from benchmarks.comparison_file import check_beside, put_row, recipe_sha256
from benchmarks.machine import this_machine
from pretrain.batches.augment import AUGMENT_DRAWS, prepare
from pretrain.batches.options import AugmentOptions
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.options import ZeroShotOptions
from pretrain.evaluation.retrieval import retrieval
from pretrain.evaluation.sets import EvaluationSet
from pretrain.evaluation.zero_shot import class_embeddings, zero_shot
from pretrain.recipe.parsing import parse
from pretrain.recipe.recipe import Recipe
from pretrain.run.metrics import code_commit

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
    recipe: Path = Path("pretrain/recipes/demo.yaml")
    """Recipe whose first stage, caption weights and zero-shot tasks are taken."""
    learning_rate: float = 2e-3
    """AdamW's peak; falls to 0 by a cosine over the time given."""
    weight_decay: float = 0.1
    """AdamW's weight decay, on matrices and filters but the word vectors."""
    threads: int = 2
    """CPU threads."""

    def __post_init__(self) -> None:
        if not evaluation_sets(self.sets):
            raise ValueError("no evaluation set: write --sets NAME=DIR, once per set")
        if self.seconds <= 0:
            raise ValueError(f"seconds={self.seconds:g}: give a positive time")


def evaluation_sets(sets: list[str]) -> dict[str, Path]:
    """Directory of each evaluation set by its name, from NAME=DIR."""
    pairs = [one.partition("=") for one in sets]
    if not all(name and equals and path for name, equals, path in pairs):
        raise ValueError(f"sets={sets}: write --sets NAME=DIR, once per evaluation set")
    return {name: Path(path) for name, _, path in pairs}


def train(
    model: Baseline, data: TrainingData, options: BaselineOptions, recipe: Recipe
) -> dict[str, float]:
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
    stage = next(iter(recipe.stages.values()))
    batch = stage.global_batch_samples
    batches = len(data.images) // batch
    losses: list[float] = []
    model.train()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - begin) < options.seconds:
        if len(losses) % batches == 0:
            order = torch.randperm(len(data.images), generator=draw)
        at = len(losses) % batches * batch
        rows = order[at : at + batch]
        rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * elapsed / options.seconds))
        for group in optimizer.param_groups:
            group["lr"] = rate
        drawn = torch.multinomial(data.caption_chances[rows], 1, generator=draw)[:, 0]
        augment = torch.rand(len(rows), AUGMENT_DRAWS, generator=draw)
        pixels = prepare(
            data.images[rows], augment, stage.augment, recipe.data.normalisation, torch.float32
        )
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
        "samples": len(losses) * batch,
        "images_per_s": len(losses) * batch / seconds,
        "steps": len(losses),
        "epochs": len(losses) / batches,
        "last_loss": float(np.mean(losses[-batches:])),
    }


@torch.inference_mode()
def evaluate(
    model: Baseline, sets: dict[str, EvaluationSet], recipe: Recipe, image_px: int
) -> dict[str, Any]:
    """{set: {image_to_text, text_to_image, zero_shot}}, as the evaluator of a run gives them.

    Retrieval is over distinct labels; an equal score of another label counts as ranked before.
    """
    model.eval()
    tasks = {}
    for column, task in recipe.evaluation.zero_shot.items():
        classes = sorted({label for one in sets.values() for label in one.classes(column)})
        tasks[column] = (classes, classifier(model, column, task, classes, recipe))
    results: dict[str, Any] = {}
    for name, one in sets.items():
        images = embed_images(model, read_images(one.dataset, image_px), recipe)
        results[name] = retrieval(images, embed_texts(model, one.caption_ids), one.matches)
        results[name]["zero_shot"] = {
            column: zero_shot(
                images, torch.tensor([classes.index(c) for c in one.classes(column)]), matrix
            )
            for column, (classes, matrix) in tasks.items()
        }
    return results


def open_set(path: Path, training: Dataset) -> EvaluationSet:
    """An evaluation set; ValueError if its ids are of another tokenizer than the training set's."""
    one = EvaluationSet.open(path, training.tier)
    if one.dataset.manifest.tokenizer.sha256 != training.manifest.tokenizer.sha256:
        raise ValueError(
            f"evaluation set {path} was tokenized by another tokenizer than {training.directory}: "
            f"rebuild it with `data_prep build --tokenizer {training.directory}/tokenizer.model`"
        )
    return one


def classifier(
    model: Baseline, column: str, task: ZeroShotOptions, classes: list[str], recipe: Recipe
) -> Tensor:
    """(C, embed_dim) of a column's classes: by prompts, or by the labels of a dataset."""
    if task.label_ensemble is None:
        encode = Dataset(recipe.data.train, recipe.data.tier).tokenizer().encode
        pairs = [
            (np.asarray(encode(prompt.format(name))), i)
            for i, name in enumerate(classes)
            for prompt in task.prompts
        ]
    else:
        seen = EvaluationSet.open(task.label_ensemble, recipe.data.tier)
        labels = seen.classes(column)
        known = sorted(
            {
                (caption, classes.index(labels[row]))
                for row, caption in seen.matches.tolist()
                if labels[row] in classes
            }
        )
        pairs = [(seen.caption_ids[caption], i) for caption, i in known]
    features = embed_texts(model, [ids for ids, _ in pairs])
    return class_embeddings(features, torch.tensor([i for _, i in pairs]), len(classes))


def embed_images(model: Baseline, images: Tensor, recipe: Recipe) -> Tensor:
    """(n, embed_dim) of uint8 pictures."""
    plain = AugmentOptions()
    parts = [
        prepare(part, None, plain, recipe.data.normalisation, torch.float32)
        for part in images.split(_FORWARD_SAMPLES)
    ]
    return torch.cat([model.encode_image(part) for part in parts])


def embed_texts(model: Baseline, texts: list[NDArray[np.integer]]) -> Tensor:
    """(m, embed_dim) of texts given as token ids, whole."""
    rows = [torch.from_numpy(ids.astype(np.int64)) for ids in texts]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_id)
    return torch.cat([model.encode_text(ids) for ids in padded.split(_FORWARD_SAMPLES)])


def run(options: BaselineOptions) -> dict[str, Any]:
    """Train, evaluate, write the row, return it."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    recipe, _ = parse(["--config", str(options.recipe), "--data.train", str(options.data)])
    head = {
        "name": options.name,
        "recipe_sha256": recipe_sha256(recipe),
        "machine": this_machine(options.threads),
        "seed": options.seed,
        "seconds_budget": options.seconds,
    }
    check_beside(options.out, head)  # rows of something else are refused before training
    stage = next(iter(recipe.stages.values()))
    image_px = stage.tokens.image_px
    dataset = Dataset(options.data, recipe.data.tier)
    if len(dataset) < stage.global_batch_samples:
        raise ValueError(
            f"{options.data} has {len(dataset)} samples, a batch of {options.recipe} has "
            f"{stage.global_batch_samples}: choose a recipe of a smaller global_batch_samples"
        )
    sets = {name: open_set(path, dataset) for name, path in evaluation_sets(options.sets).items()}
    data = TrainingData.read(dataset, image_px, recipe.data.caption_weights)
    model = Baseline(dataset.vocabulary)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(data.images):,} pictures", flush=True)
    trained = train(model, data, options, recipe)
    row = {
        **head,
        **trained,
        "parameters": parameters,
        "sets": evaluate(model, sets, recipe, image_px),
        "commit": code_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    put_row(options.out, row)
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
