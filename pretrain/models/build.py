"""Building a CLIP for given token lengths, with or without weights."""

import torch
from torch import Tensor

from pretrain.models.attention import register_short_attention
from pretrain.models.clip import CLIP, resize_weights
from pretrain.models.options import ModelOptions
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.vocabulary import Vocabulary

# What weights do not decide (the places of a longer context that were never trained) is drawn by
# this seed, so that the same weights are always the same model.
_UNTRAINED_SEED = 0


def build_model(
    options: ModelOptions,
    *,
    tokens: TokenOptions,
    vocabulary: Vocabulary,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
) -> CLIP:
    """A CLIP on `device` for a stage's picture size and context length.

    With weights: those, resized to these lengths, a function of them alone that neither reads nor
    moves torch's generator; without: random by torch's generator. The attention implementation
    follows the device: fused on CUDA, explicit on a CPU.
    """
    if device.type == "cuda":
        register_short_attention()
    generator = torch.default_generator  # a model is built on the CPU: no other one is drawn from
    before = generator.get_state()
    if weights is not None:
        generator.manual_seed(_UNTRAINED_SEED)
    model = CLIP(
        options,
        vocabulary=vocabulary,
        image_px=tokens.image_px,
        text_tokens=tokens.text_tokens,
        explicit_attention=device.type == "cpu",
    )
    if weights is not None:
        generator.set_state(before)
        model.load_state_dict(resize_weights(weights, model))
    return model.to(device)
