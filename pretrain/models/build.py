"""Building a CLIP for given token lengths, with or without weights."""

import torch
from torch import Tensor

from pretrain.models.clip import CLIP, ModelOptions, resized_weights
from pretrain.tokens.options import TokenOptions


def build_model(
    options: ModelOptions,
    *,
    tokens: TokenOptions,
    vocab_size: int,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
) -> CLIP:
    """A CLIP on `device` for a stage's picture size and context length.

    With weights: those, resized to these lengths; without: random by torch's generator. The
    attention implementation follows the device: fused on CUDA, explicit on a CPU.
    """
    model = CLIP(
        options,
        vocab_size=vocab_size,
        image_px=tokens.image_px,
        text_tokens=tokens.text_tokens,
        explicit_attention=device.type == "cpu",
    )
    if weights is not None:
        model.load_state_dict(resized_weights(weights, model))
    return model.to(device)
