"""CLIP: two towers and two projections into one space; resizing of its weights.

Letters used in shapes everywhere: B local batch, G global batch, N image tokens, K kept image
tokens, T text tokens, D tower width, E embedding width.
"""

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pretrain.base import compat
from pretrain.models.image_tower import ImageTower
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.positions import (
    resize_image_positions,
    resize_text_positions,
    stretch_tail_positions,
)
from pretrain.models.text_tower import TextTower
from pretrain.tokens.vocabulary import Vocabulary

compat.make_torchvision_importable()  # timm and transformers import it, wherever they are used

IMAGE_POSITIONS = "image.positions"
_CLASSIFIER = "classifier."
_TEXT_POSITIONS_SUFFIX = "position_embedding.weight"


def read_model_options(raw: dict[str, Any]) -> ModelOptions:
    """`model` of an exported config.json; options younger than the file have their defaults."""
    towers = {
        "image": ImageTowerOptions(**raw["image"]),
        "text": TextTowerOptions(**raw["text"]),
    }
    options = ModelOptions(**{**raw, **towers})
    try:  # a dataclass takes any value
        TypeAdapter(ModelOptions).validate_json(json.dumps(asdict(options)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("model", *first["loc"])))
        raise ValueError(f"{place}={first['input']!r:.80}: {first['msg']}") from error
    return options


class CLIP(nn.Module):
    """Image and text to unit vectors in one space. The temperature belongs to the loss.

    classifier: what a loss may add while it trains, (pooled (B, D), text_ids (B, T)) → (B,).
    """

    classifier: nn.Module | None

    def __init__(
        self,
        options: ModelOptions,
        *,
        vocabulary: Vocabulary,
        image_px: int,
        text_tokens: int,
        explicit_attention: bool,
    ) -> None:
        """explicit_attention: matmul-softmax, 8x faster than fused attention in bf16 on a CPU."""
        super().__init__()
        self.options = options
        self.image = ImageTower(
            options.image, image_px=image_px, explicit_attention=explicit_attention
        )
        self.text = TextTower(
            options.text,
            vocabulary=vocabulary,
            text_tokens=text_tokens,
            explicit_attention=explicit_attention,
        )
        self.classifier = None
        self.image_projection: nn.Module = nn.Identity()
        if options.image_projection:
            self.image_projection = nn.Linear(options.image.width, options.embed_dim, bias=False)
        self.text_projection = nn.Linear(
            options.text.width, options.embed_dim, bias=options.text_projection_bias
        )
        if isinstance(self.image_projection, nn.Linear):
            nn.init.normal_(self.image_projection.weight, std=options.image.width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=options.text.width**-0.5)
        if options.text_projection_bias:
            nn.init.zeros_(self.text_projection.bias)

    @property
    def dtype(self) -> torch.dtype:
        return self.text_projection.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.text_projection.weight.device

    def encode_image(self, images: Tensor, keep_index: Tensor | None = None) -> Tensor:
        """images (B, 3, H, W) normalised, keep_index (B, K) or None → (B, E) fp32, unit norm."""
        return _unit(self.image_projection(self.image(images, keep_index)))

    def encode_text(self, text_ids: Tensor) -> Tensor:
        """text_ids (B, T) → (B, E) fp32, unit norm."""
        return _unit(self.text_projection(self.text(text_ids)))

    def forward(
        self, images: Tensor, text_ids: Tensor, keep_index: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(image features, text features), each (B, E) fp32, unit norm; with a classifier, what it
        gives (B,) behind them."""
        pooled = self.image(images, keep_index)
        features = _unit(self.image_projection(pooled)), self.encode_text(text_ids)
        if self.classifier is None:
            return features
        return *features, self.classifier(pooled, text_ids)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def without_classifier(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What two towers consist of: weights without those of a classifier that trained them."""
    return {n: weight for n, weight in weights.items() if not n.startswith(_CLASSIFIER)}


def resize_weights(weights: dict[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """Weights of a CLIP of the same shape, fitted to `model`'s picture size and context length.

    Learned image positions are resized bicubic (antialiased); text positions stretched or
    continued as model.text.positions_resize says; a continued table takes what it lacks from
    `model`, whose small random rows are by its builder's seed: a stage's where it trains on,
    always the same one where it is evaluated. Fixed sin-cos positions are not weights. A model
    without a classifier leaves that of the weights behind.
    """
    if model.classifier is None:
        weights = without_classifier(weights)
    target = model.state_dict()
    if set(weights) != set(target):
        missing, extra = sorted(set(target) - set(weights)), sorted(set(weights) - set(target))
        raise ValueError(
            f"weights do not fit the model: missing {missing[:5]}, unknown {extra[:5]}; the "
            "recipe's model section differs from the one that trained them"
        )
    fitted = dict(weights)
    for name, tensor in weights.items():
        if name == IMAGE_POSITIONS:
            fitted[name] = resize_image_positions(
                tensor, model.image.grid, cls=model.options.image.cls_position
            )
        elif name.endswith(_TEXT_POSITIONS_SUFFIX):
            if model.options.text.positions_resize == "interpolate":
                fitted[name] = resize_text_positions(tensor, model.text.text_tokens)
            elif model.options.text.positions_resize == "stretch_tail":
                fitted[name] = stretch_tail_positions(tensor, model.text.text_tokens)
            else:
                fitted[name] = torch.cat([tensor, target[name][len(tensor) :].to(tensor)])[
                    : model.text.text_tokens
                ]
    return fitted
