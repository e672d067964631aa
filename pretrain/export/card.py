"""README.md of an exported folder: what the model is, what it learned from, how well it does."""

import json
from pathlib import Path
from typing import Any

from pretrain.base.run_files import EVALUATION_FILE, RECIPE_FILE
from pretrain.recipe.recipe import Recipe

CARD_FILE = "README.md"
_USE = {
    "native": 'import pretrain\n\nmodel = pretrain.load("FOLDER")',
    "transformers": (
        "from transformers import pipeline\n\n"
        'classify = pipeline("zero-shot-image-classification", model="FOLDER", '
        "trust_remote_code=True)"
    ),
    "open_clip": (
        "import open_clip\n\n"
        'model, _, prepare = open_clip.create_model_and_transforms("local-dir:FOLDER")\n'
        'tokenize = open_clip.get_tokenizer("local-dir:FOLDER")'
    ),
}
_OPEN_CLIP_NOTE = """
open_clip prepares inputs in its own way: it drops transparency and EXIF orientation, resizes before
it crops, and cleans texts with ftfy and HTML unescaping. Embeddings equal the training code's on
opaque, upright, square pictures up to rounding, and on texts that the cleaning leaves alone.
"""
_ONNX = """## ONNX

`image.onnx`: `pixel_values` (batch, 3, {px}, {px}) fp32, prepared as above, to `image_embeds`.
`text.onnx`: `input_ids` (batch, {tokens}) int64, padded with {pad}, to `text_embeds`. Both give
unit vectors. The metadata entry `clipa` of each repeats the preparation.

```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/text.onnx")
(embeds,) = session.run(["text_embeds"], {{"input_ids": input_ids}})
```
"""


def model_card(
    recipe: Recipe, stage: str, form: str, config: dict[str, Any], fingerprint: str, *, onnx: bool
) -> str:
    """Markdown with the hub's YAML head; `licence` is for the owner of the data to fill in.

    onnx: whether the folder has ONNX files."""
    head = [
        "---",
        "license: other",
        "license_name: not-stated",
        "pipeline_tag: zero-shot-image-classification",
        f"library_name: {form if form != 'native' else 'clipa-pretrain'}",
        "tags: [clip, clipa]",
        "---",
    ]
    preparation = [f"- {name}: {value}" for name, value in config["preprocessing"].items()]
    parts = [
        *head,
        f"\n# CLIP, {config['image_px']} px, {config['text_tokens']} text tokens\n",
        "A contrastive image-text model trained by CLIPA token reduction: few image and text "
        "tokens first, then all.\n",
        f"Licence: not stated. Set `license` above by the terms of the training data.\n\n"
        f"```python\n{_USE[form]}\n```",
        _OPEN_CLIP_NOTE if form == "open_clip" else "",
        "## Inputs\n\n" + "\n".join(preparation) + "\n",
        *([_onnx(config)] if onnx else []),
        "## Training data\n\nFingerprint of the dataset (sha256 of its manifest): "
        f"`{fingerprint}`\n",
        "## Results\n\n" + _results(recipe.run_dir),
        f"## Recipe\n\nThese are the weights of stage `{stage}`.\n\n```yaml\n"
        + (recipe.run_dir / RECIPE_FILE).read_text(encoding="utf-8").strip()
        + "\n```\n",
    ]
    return "\n".join(parts)


def _onnx(config: dict[str, Any]) -> str:
    return _ONNX.format(
        px=config["image_px"], tokens=config["text_tokens"], pad=config["vocabulary"]["pad_id"]
    )


def _results(run_dir: Path) -> str:
    """A table of the run's last evaluation, or that there is none."""
    path = run_dir / EVALUATION_FILE
    if not path.is_file():
        return "No evaluation in the run folder.\n"
    rows = []
    for point in json.loads(path.read_text(encoding="utf-8"))["points"]:
        where = f"after {point['after']}, at {point['tokens']} tokens"
        for one in point["figures"]:
            words = [one[field] for field in ("task", "set", "part", "name") if one[field]]
            chance = "" if one["chance"] is None else f"{one['chance']:.4g}"
            numbers = f"{one['value']:.4g} | {chance} | {one['n']}"
            rows.append(f"| {where} | {' '.join(words)} | {numbers} |")
    head = ["| evaluated | figure | value | chance | n |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"
