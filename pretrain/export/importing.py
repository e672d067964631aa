"""A foreign model as an exported folder of ours, judged by its own library."""

import random
import string
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.augment import MEAN_STD, Normalisation
from pretrain.export.from_open_clip import read_open_clip
from pretrain.export.from_transformers import read_transformers
from pretrain.export.native import TOKENIZER_FILE, load, native_config, write_native
from pretrain.export.open_clip import CONFIG_FILE as OPEN_CLIP_CONFIG
from pretrain.export.source import OUR_RESIZE, Source
from pretrain.files import write_durably
from pretrain.models.clip import ModelOptions
from pretrain.models.starting import CONFIG_FILE
from pretrain.tokens.context import Specials, context
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer

_TOLERANCE = 1e-4
_SAMPLES = 16
_TOKEN_TABLE = "text.encoder.embeddings.token_embedding.weight"


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
    texts = _texts(source.tokens.text_tokens, tokenizer)
    specials = _specials(source, tokenizer, texts, folder)
    options = replace(source.options, text=replace(source.options.text, specials=specials))
    table = source.weights[_TOKEN_TABLE]
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
    write_native(out, config, {**source.weights, _TOKEN_TABLE: table[:size].clone()}, tokenizer)
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
        "open_clip model or of a transformers CLIPModel"
    )


def _normalisation(source: Source, folder: Path) -> Normalisation:
    for name, known in MEAN_STD.items():
        if np.allclose(known, (source.mean, source.std), rtol=0, atol=1e-6):
            return name  # type: ignore[return-value]
    raise ValueError(
        f"{folder}: pictures are normalised by mean {source.mean} and std {source.std}; this "
        f"package has {', '.join(MEAN_STD)} only: convert a model of one of these"
    )


def _texts(tokens: int, tokenizer: Tokenizer) -> list[str]:
    """Texts of random words that fit the context; an empty one first."""
    draw = random.Random(0)
    found = [""]
    while len(found) < _SAMPLES:
        words = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 6)))
                 for _ in range(draw.randint(1, 8)))  # fmt: skip
        text = " ".join(words)
        while len(tokenizer.encode(text)) > tokens - 2:
            text = text[:-1].rstrip()
        found.append(text)
    return found


def _ids(
    tokenizer: Tokenizer, texts: list[str], tokens: int, specials: Specials
) -> NDArray[np.int64]:
    ids = [np.asarray(tokenizer.encode(text), np.int64) for text in texts]
    return context(ids, tokens, specials, tokenizer.vocabulary)


def _seen(ids: NDArray[np.int64], options: ModelOptions, eos_id: int) -> NDArray[np.int64]:
    """Ids without what stands behind the first eos, where a causal tower pools there."""
    if not (options.text.causal and options.text.pool in ("eos", "highest_id")):
        return ids
    behind = (ids == eos_id).cumsum(axis=1) - (ids == eos_id) > 0
    return np.where(behind, -1, ids)


def _specials(source: Source, tokenizer: Tokenizer, texts: list[str], folder: Path) -> Specials:
    """The special ids around a text with which ours equal the source's own."""
    eos, tokens = tokenizer.vocabulary.eos_id, source.tokens.text_tokens
    theirs = source.tokenize(texts).numpy()
    wanted = _seen(theirs, source.options, eos)
    for specials in reversed(get_args(Specials)):
        if np.array_equal(
            _seen(_ids(tokenizer, texts, tokens, specials), source.options, eos), wanted
        ):
            return specials
    ours = _ids(tokenizer, texts, tokens, "bos_eos")
    raise ValueError(
        f"{folder}: its tokenizer cannot be taken along: {texts[1]!r} has the ids "
        f"{theirs[1].tolist()[:12]} there and {ours[1].tolist()[:12]} here, with any special ids"
    )


@torch.inference_mode()
def _difference(source: Source, out: Path, texts: list[str]) -> float:
    """Largest difference of an embedding's value, in pictures of the model's own size."""
    image_px = source.tokens.image_px
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (_SAMPLES, image_px, image_px, 3), dtype=np.uint8)
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
        _seen(ids, options, eos)
        for ids in (source.tokenize([long]).numpy(),
                    _ids(tokenizer, [long], tokens, options.text.specials))
    )  # fmt: skip
    if not np.array_equal(theirs, ours):
        notes.append(
            f"texts longer than {tokens} tokens are cut otherwise by the source: it ends in ids "
            f"{theirs[0, -3:].tolist()}, here {ours[0, -3:].tolist()}"
        )
    return notes
