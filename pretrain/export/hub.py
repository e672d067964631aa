"""The files that make an exported folder one of transformers' models."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pretrain.base.files import write_durably
from pretrain.export.bundle import bundle
from pretrain.export.tokenizer import tokenizer_files
from pretrain.tokens.tokenizer import Tokenizer

CODE_FILE, PICTURES_FILE = "modeling_clipa.py", "processing_clipa.py"
PICTURES_CONFIG = "preprocessor_config.json"
_CLASSES = "pretrain.export.hub_classes"
_TITLE = "CLIPA for transformers, from the code that trained it. Needs transformers and timm."


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """The exported config with what transformers looks for."""
    return {
        **config,
        "architectures": ["ClipaModel"],
        "model_type": "clipa",
        "dtype": "float32",
        "auto_map": {
            "AutoConfig": "modeling_clipa.ClipaConfig",
            "AutoModel": "modeling_clipa.ClipaModel",
            "AutoModelForZeroShotImageClassification": "modeling_clipa.ClipaModel",
        },
    }


def hub_files(config: dict[str, Any], tokenizer: Tokenizer, captions: list[str]) -> dict[str, str]:
    """{file name: content} beside the native ones. ValueError where ids would differ."""
    pictures = {
        "image_processor_type": "ClipaImageProcessor",
        "processor_class": "ClipaProcessor",
        "auto_map": {
            "AutoImageProcessor": "processing_clipa.ClipaImageProcessor",
            "AutoProcessor": "processing_clipa.ClipaProcessor",
        },
        "image_px": config["image_px"],
        "image_mean": config["preprocessing"]["mean"],
        "image_std": config["preprocessing"]["std"],
    }
    return {
        **tokenizer_files(
            tokenizer, config["model"]["text"]["specials"], config["text_tokens"], captions
        ),
        PICTURES_CONFIG: json.dumps(pictures, indent=2) + "\n",
        CODE_FILE: bundle([(_CLASSES, "ClipaConfig"), (_CLASSES, "ClipaModel")], _TITLE),
        PICTURES_FILE: bundle(
            [(_CLASSES, "ClipaImageProcessor"), (_CLASSES, "ClipaProcessor")], _TITLE
        ),
    }


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        write_durably(folder / name, content)


def embed_with_transformers(
    folder: Path, pictures: list[Image.Image], texts: list[str]
) -> tuple[Tensor, Tensor]:
    """(B, E) of pictures and of texts by the folder's own code. Call without gradient."""
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=pictures, text=texts)
    return (
        model.get_image_features(inputs["pixel_values"]).pooler_output,
        model.get_text_features(inputs["input_ids"]).pooler_output,
    )
