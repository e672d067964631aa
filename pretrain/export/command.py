"""The command: a finished stage's weights in the format asked for, judged by loading it back."""

import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.engine.options import WeightsKind
from pretrain.export.aside import folder_aside
from pretrain.export.card import CARD_FILE, model_card
from pretrain.export.hub import embed_with_transformers, hub_config, hub_files, write_files
from pretrain.export.judge import Embeddings, embeddings, judge
from pretrain.export.native import ExportedModel, export_config, load, write_native
from pretrain.export.onnx import ONNX_FILES, check_onnx, write_onnx
from pretrain.export.open_clip import CONFIG_FILE as OPEN_CLIP_CONFIG
from pretrain.export.open_clip import embed_with_open_clip, open_clip_text_files, write_open_clip
from pretrain.export.options import ExportOptions, Format
from pretrain.export.push import check_push, push
from pretrain.models.build import build_model
from pretrain.models.starting import CONFIG_FILE
from pretrain.recipe.parsing import read_recipe
from pretrain.recipe.recipe import Recipe
from pretrain.run.stage_weights import read_finished_weights, weights_name

# What a format's folder is judged with: the oldest versions that this was tried with.
_NEEDS = {"transformers": ("transformers", (5, 20)), "open_clip": ("open_clip_torch", (3, 3))}
_JUDGED_SAMPLES = 16
_TOKENIZED_CAPTIONS = (
    10_000  # how many captions must get our ids before a tokenizer.json is written
)
_TOLERANCE = 1e-5  # embeddings are unit vectors in fp32


def export(
    recipe: Recipe,
    stage: str,
    out: Path,
    form: Format = "transformers",
    *,
    weights_kind: WeightsKind = "plain",
    onnx: bool = False,
) -> str:
    """Write a finished stage's model into `out`; what the folder, loaded back, differs by from the
    run's own weights, on pictures and captions of the training set. ValueError where it differs;
    then `out` is what it was before.

    onnx: image.onnx and text.onnx too."""
    name = weights_name(recipe, stage, weights_kind)
    weights, objective = read_finished_weights(recipe.run_dir, name)
    config = export_config(recipe, stage, objective)
    # A cache is a training node's; here it serves only shards that have no other way.
    far = recipe.data.shards if recipe.data.shards.url is not None else None
    dataset = Dataset(recipe.data.train, recipe.stages[stage].tier or recipe.data.tier, shards=far)
    tokenizer = dataset.tokenizer()
    own = ExportedModel(
        model=build_model(
            recipe.model,
            tokens=recipe.stages[stage].tokens,
            vocabulary=dataset.vocabulary,
            device=torch.device("cpu"),
            weights=weights,
        ).eval(),
        tokenizer=tokenizer,
        normalisation=recipe.data.normalisation,
        logit_scale=config["logit_scale"],
        logit_bias=config.get("logit_bias"),
    )
    captions = _captions(dataset, _TOKENIZED_CAPTIONS)
    card = model_card(recipe, stage, form, config, dataset.fingerprint, onnx=onnx)
    samples = _pictures(dataset), captions[:_JUDGED_SAMPLES]
    last = OPEN_CLIP_CONFIG if form == "open_clip" else CONFIG_FILE
    with folder_aside(out, last, stale=ONNX_FILES) as aside:
        extra = f" (ONNX: {write_onnx(aside, own, config, *samples):.1e})" if onnx else ""
        return _write_judged(aside, own, config, card, form, captions, samples) + extra


def _write_judged(
    out: Path,
    own: ExportedModel,
    config: dict[str, Any],
    card: str,
    form: Format,
    captions: list[str],
    samples: tuple[list[Image.Image], list[str]],
) -> str:
    """The folder in its format; the difference, loaded back. ValueError where it differs."""
    with torch.inference_mode():
        expected = embeddings(own.encode_images(samples[0]), own.encode_texts(samples[1]))
    if form == "open_clip":
        write_files(out, {CARD_FILE: card, **open_clip_text_files(own, config, captions)})
        write_open_clip(out, own, config)
        exact, prepared = embed_with_open_clip(out, own, *samples)
        told = f"{_judge(out, exact, expected, _TOLERANCE):.1e}"
        other = _judge(out, prepared, expected, math.inf)
        return f"{told} ({other:.1e} on pictures and texts that open_clip prepares in its own way)"
    files = {CARD_FILE: card}
    if form == "transformers":
        files.update(hub_files(config, own.tokenizer, captions))
        config = hub_config(config)
    write_native(out, config, own.model.state_dict(), own.tokenizer)
    write_files(out, files)
    with torch.inference_mode():
        loaded = load(out)
        found = [embeddings(loaded.encode_images(samples[0]), loaded.encode_texts(samples[1]))]
        if form == "transformers":
            found.append(embeddings(*embed_with_transformers(out, *samples)))
    worst = [_judge(out, each, expected, _TOLERANCE) for each in found]  # finite: judged
    return f"{max(worst):.1e}"


def _judge(out: Path, found: Embeddings, expected: Embeddings, tolerance: float) -> float:
    return judge(
        found,
        expected,
        found_of=f"the export {out}",
        expected_of="the run's stage",
        tolerance=tolerance,
        remedy="nothing was written; export another --stage or --format",
    )


def _pictures(dataset: Dataset) -> list[Image.Image]:
    """Pictures from all over the training set."""
    rows = range(0, len(dataset), max(1, len(dataset) // _JUDGED_SAMPLES))[:_JUDGED_SAMPLES]
    return [Image.fromarray(decode(dataset.read(row).jpeg)) for row in rows]


def _captions(dataset: Dataset, most: int) -> list[str]:
    rows = range(0, len(dataset), max(1, len(dataset) // most))[:most]
    return [text for row in rows for text in dataset.read_json(row)["captions"].values()]


def check_library(form: Format) -> None:
    """ValueError unless the library that a format is for is here, at a version that was tried."""
    package, least = _NEEDS.get(form, ("", ()))
    if not package:
        return
    wanted = ".".join(map(str, least))
    try:
        found = version(package)
    except PackageNotFoundError:
        found = "none"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < least:
        raise ValueError(
            f"--format {form} needs {package} {wanted} or later to judge what it writes, found "
            f"{found}: pip install '{package}>={wanted}', or export with --format native"
        )


def export_run(options: ExportOptions) -> None:
    """Export a trained model, and compare what the folder gives with the run's own weights."""
    recipe = read_recipe(options.run_dir)
    stage = options.stage or list(recipe.stages)[-1]
    name = "export_open_clip" if options.format == "open_clip" else "export"
    folder = options.out or options.run_dir / name
    check_library(options.format)
    if options.onnx:
        check_onnx()
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    kind = options.weights
    difference = export(recipe, stage, folder, options.format, weights_kind=kind, onnx=options.onnx)
    told = f"stage {stage}" + ("" if kind == "plain" else f", {kind} weights,")
    print(f"exported {told} to {folder}; largest difference after loading {difference}")
    if options.push_to_hub is not None:
        print(f"uploaded to {push(folder, options.push_to_hub, private=options.private)}")
