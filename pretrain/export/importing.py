"""A foreign model as an exported folder of ours, judged by its own library."""

import difflib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pretrain.base.files import write_durably
from pretrain.batches.augment import MEAN_STD
from pretrain.batches.options import Normalisation
from pretrain.export.aside import folder_aside
from pretrain.export.foreign import one_line_of_library, refuse_code
from pretrain.export.from_open_clip import read_open_clip, read_open_clip_file
from pretrain.export.from_transformers import read_transformers
from pretrain.export.judge import embeddings, judge
from pretrain.export.native import TOKENIZER_FILE, load, native_config, write_native
from pretrain.export.onnx import ONNX_FILES
from pretrain.export.open_clip import CONFIG_FILE as OPEN_CLIP_CONFIG
from pretrain.export.options import ConvertOptions
from pretrain.export.source import OUR_RESIZE, TOKEN_TABLE, ForeignModel
from pretrain.export.source_ids import (
    SAMPLES,
    check_captions,
    context_ids,
    draw_texts,
    drop_unseen_ids,
    find_specials,
)
from pretrain.models.options import ModelOptions
from pretrain.models.starting import CONFIG_FILE
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer

_TOLERANCE = 1e-4


def convert_source(source: Path, out: Path, options: ConvertOptions) -> None:
    """Convert a foreign model, and say what is to be known of it."""
    difference, notes = convert(source, out, options.open_clip_name)
    for note in notes:
        print(f"note: {note}")
    print(f"converted {source} to {out}; largest difference {difference:.1e}")


def convert(folder: Path, out: Path, name: str | None = None) -> tuple[float, list[str]]:
    """Write a foreign model as an export of ours into `out`.

    folder: or a file of open_clip's training, whose architecture `name` is.

    Returns the largest difference of any value of an embedding from what the source's own library
    gives, each side preparing random pictures and texts by itself, and notes of one line on what
    the folder cannot record. ValueError where the folder names code to run, which is not run, and
    where something cannot be expressed exactly; then `out` is what it was before.
    """
    if folder.resolve() == out.resolve():
        raise ValueError(f"OUT={out} is SOURCE: name another folder")
    path = _find_description(folder, name)
    refuse_code(folder)
    with one_line_of_library(path, folder, out):
        if name is not None:
            source = read_open_clip_file(folder, name)
        elif path.name == OPEN_CLIP_CONFIG:
            source = read_open_clip(folder)
        else:
            source = read_transformers(folder)
        _check_figures(source, folder)
        normalisation = _normalisation(source, folder)
        with folder_aside(out, CONFIG_FILE, stale=ONNX_FILES) as aside:
            return _write_judged(source, normalisation, folder, out, aside)


def _write_judged(
    source: ForeignModel, normalisation: Normalisation, folder: Path, out: Path, aside: Path
) -> tuple[float, list[str]]:
    """The folder aside, whole; what `convert` returns."""
    write_durably(aside / TOKENIZER_FILE, source.tokenizer)
    tokenizer = open_tokenizer(aside / TOKENIZER_FILE)
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
    write_native(aside, config, {**source.weights, TOKEN_TABLE: table[:size].clone()}, tokenizer)
    return _difference(source, aside, texts, folder, out), _notes(source, options, tokenizer)


def _find_description(folder: Path, name: str | None) -> Path:
    """The file that says what the folder is, of either library; the source where it is a file."""
    if folder.is_file():
        if name is None:
            raise ValueError(
                f"{folder} is a file, which does not say its architecture: give the name that "
                "open_clip's training got as --model, by --open-clip-name (as ViT-B-16)"
            )
        _check_name(name)
        return folder
    if name is not None and folder.is_dir():
        raise ValueError(
            f"--open-clip-name {name}: {folder} is a folder, which says its architecture itself: "
            "leave the option out, or give a file of weights"
        )
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return folder / OPEN_CLIP_CONFIG
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has neither {OPEN_CLIP_CONFIG} nor {CONFIG_FILE}: give the folder of an "
            "open_clip model or of a transformers CLIPModel or SiglipModel"
        )
    if (folder / TOKENIZER_FILE).is_file():
        raise ValueError(
            f"{folder} has {TOKENIZER_FILE}, so it is an export of this package already: give it "
            "as it is to `evaluate --model`, start.export or `pretrain.load`"
        )
    return path


def _check_name(name: str) -> None:
    """ValueError names the nearest architectures where open_clip has none of this name."""
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(
            f"--open-clip-name {name}: open_clip has no such architecture; "
            + (f"nearest are {', '.join(near)}" if near else f"it has {', '.join(known[:9])}, …")
        )


def _check_figures(source: ForeignModel, folder: Path) -> None:
    for name, value in source.figures.items():
        if not math.isfinite(value):
            raise ValueError(f"{folder}: its {name} is {value}, not finite; get the whole model "
                             "again")  # fmt: skip


def _normalisation(source: ForeignModel, folder: Path) -> Normalisation:
    for name, known in MEAN_STD.items():
        if np.allclose(known, (source.mean, source.std), rtol=0, atol=1e-6):
            return name  # type: ignore[return-value]
    raise ValueError(
        f"{folder}: pictures are normalised by mean {source.mean} and std {source.std}; this "
        f"package has {', '.join(MEAN_STD)} only: convert a model of one of these"
    )


@torch.inference_mode()
def _difference(
    source: ForeignModel, aside: Path, texts: list[str], folder: Path, out: Path
) -> float:
    """Largest difference of an embedding's value, in pictures of the model's own size."""
    image_px = source.tokens.image_px
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (SAMPLES, image_px, image_px, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in noise]
    ours = load(aside)
    return judge(
        embeddings(ours.encode_images(pictures), ours.encode_texts(texts)),
        embeddings(*source.embed(source.prepare(pictures), source.tokenize(texts))),
        found_of=f"the conversion {out}",
        expected_of=str(folder),
        tolerance=_TOLERANCE,
        remedy="nothing was written: the model is damaged, or not expressible exactly",
    )


def _notes(source: ForeignModel, options: ModelOptions, tokenizer: Tokenizer) -> list[str]:
    notes = []
    if source.resize != OUR_RESIZE:
        notes.append(
            f"pictures of another size are resized otherwise by the source ({source.resize}) than "
            f"here ({OUR_RESIZE}); `evaluate --classification.resize squash` stretches, bilinear"
        )
    eos, tokens = tokenizer.vocabulary.eos_id, source.tokens.text_tokens
    long = " ".join(["long"] * 2 * tokens)
    theirs, ours = (
        drop_unseen_ids(ids, options, eos)
        for ids in (source.tokenize([long]).numpy(),
                    context_ids(tokenizer, [long], tokens, options.text.specials))
    )  # fmt: skip
    if not np.array_equal(theirs, ours):
        notes.append(
            f"texts longer than {tokens} tokens are cut otherwise by the source: it ends in ids "
            f"{theirs[0, -3:].tolist()}, here {ours[0, -3:].tolist()}"
        )
    return notes
