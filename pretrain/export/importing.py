"""A foreign model as an exported folder of ours, judged by its own library."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pretrain.base.files import write_durably
from pretrain.batches.augment import MEAN_STD, Normalisation
from pretrain.export.from_open_clip import read_open_clip
from pretrain.export.from_transformers import read_transformers
from pretrain.export.native import TOKENIZER_FILE, load, native_config, write_native
from pretrain.export.open_clip import CONFIG_FILE as OPEN_CLIP_CONFIG
from pretrain.export.source import OUR_RESIZE, TOKEN_TABLE, Source
from pretrain.export.source_ids import (
    SAMPLES,
    check_captions,
    context_ids,
    draw_texts,
    find_specials,
    seen,
)
from pretrain.models.clip import ModelOptions
from pretrain.models.starting import CONFIG_FILE
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer

_TOLERANCE = 1e-4


def convert(folder: Path, out: Path) -> tuple[float, list[str]]:
    """Write a foreign model as an export of ours into `out`.

    Returns the largest difference of any value of an embedding from what the source's own library
    gives, each side preparing random pictures and texts by itself, and notes of one line on what
    the folder cannot record. ValueError where something cannot be expressed exactly; then `out`
    holds no model.
    """
    if folder.resolve() == out.resolve():
        raise ValueError(f"OUT={out} is SOURCE: name another folder")
    source = read_source(folder)
    normalisation = _normalisation(source, folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).unlink(missing_ok=True)
    write_durably(out / TOKENIZER_FILE, source.tokenizer)
    tokenizer = open_tokenizer(out / TOKENIZER_FILE)
    texts = draw_texts(source.tokens.text_tokens, tokenizer)
    specials = find_specials(source, tokenizer, texts, folder)
    check_captions(source, tokenizer, specials, folder)
    options = replace(source.options, text=replace(source.options.text, specials=specials))
    table = source.weights[TOKEN_TABLE]
    size = tokenizer.vocabulary.size
    if len(table) < size:
        raise ValueError(
            f"{folder}: its tokenizer has {size} ids, its model {len(table)}: they are not one "
            "model's; put the right tokenizer there"
        )
    config = native_config(
        options,
        vocabulary=tokenizer.vocabulary,
        tokens=source.tokens,
        normalisation=normalisation,
        figures=source.figures,
        tokenizer_sha256=tokenizer.sha256,
    )
    # Rows behind the last id are never read.
    write_native(out, config, {**source.weights, TOKEN_TABLE: table[:size].clone()}, tokenizer)
    difference = _difference(source, out, texts)
    if not difference < _TOLERANCE:
        (out / CONFIG_FILE).unlink()
        raise ValueError(
            f"{folder} gives other embeddings after conversion: largest difference "
            f"{difference:.1e}, allowed {_TOLERANCE:.0e}; the model is not expressible exactly"
        )
    return difference, _notes(source, options, tokenizer)


def read_source(folder: Path) -> Source:
    """A folder of either library."""
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return read_open_clip(folder)
    if (folder / CONFIG_FILE).is_file():
        return read_transformers(folder)
    raise FileNotFoundError(
        f"{folder} has neither {OPEN_CLIP_CONFIG} nor {CONFIG_FILE}: give the folder of an "
        "open_clip model or of a transformers CLIPModel or SiglipModel"
    )


def _normalisation(source: Source, folder: Path) -> Normalisation:
    for name, known in MEAN_STD.items():
        if np.allclose(known, (source.mean, source.std), rtol=0, atol=1e-6):
            return name  # type: ignore[return-value]
    raise ValueError(
        f"{folder}: pictures are normalised by mean {source.mean} and std {source.std}; this "
        f"package has {', '.join(MEAN_STD)} only: convert a model of one of these"
    )


@torch.inference_mode()
def _difference(source: Source, out: Path, texts: list[str]) -> float:
    """Largest difference of an embedding's value, in pictures of the model's own size."""
    image_px = source.tokens.image_px
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (SAMPLES, image_px, image_px, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in noise]
    ours = load(out)
    expected = source.embed(source.prepare(pictures), source.tokenize(texts))
    found = ours.encode_images(pictures), ours.encode_texts(texts)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def _notes(source: Source, options: ModelOptions, tokenizer: Tokenizer) -> list[str]:
    notes = []
    if source.resize != OUR_RESIZE:
        notes.append(
            f"pictures of another size are resized otherwise by the source ({source.resize}) than "
            f"here ({OUR_RESIZE}); `evaluate --classification.resize squash` stretches, bilinear"
        )
    eos, tokens = tokenizer.vocabulary.eos_id, source.tokens.text_tokens
    long = " ".join(["long"] * 2 * tokens)
    theirs, ours = (
        seen(ids, options, eos)
        for ids in (source.tokenize([long]).numpy(),
                    context_ids(tokenizer, [long], tokens, options.text.specials))
    )  # fmt: skip
    if not np.array_equal(theirs, ours):
        notes.append(
            f"texts longer than {tokens} tokens are cut otherwise by the source: it ends in ids "
            f"{theirs[0, -3:].tolist()}, here {ours[0, -3:].tolist()}"
        )
    return notes
