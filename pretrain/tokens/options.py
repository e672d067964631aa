"""How many tokens a stage trains on, and which."""

from dataclasses import dataclass
from typing import Literal

from pretrain.tokens.image_reduction import ImageReduction
from pretrain.tokens.text_reduction import TextReduction


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """How many image and text tokens a stage trains on, and which."""

    image_px: int
    """Side of the square training picture in pixels; smaller is CLIPA's best token reduction."""
    image_reduction: ImageReduction = "none"
    """Mask over image tokens: none, random, grid (one per 2x2 cell) or block (one rectangle)."""
    image_keep_tokens: int | None = None
    """Image tokens kept by the mask, without CLS; none and grid know it by themselves."""
    text_tokens: int
    """Text context length, special tokens included (T8 in the paper's names is 8)."""
    text_reduction: TextReduction = "truncate"
    """What a caption that is too long keeps: truncate, random, block, syntax (nouns first),
    frequency (rare tokens rather) or sentence (from the beginning of one of its sentences)."""
    syntax_unit: Literal["token", "word"] = "token"
    """What syntax ranks: tokens (CLIPA JAX), or words, which stay whole up to the context's end
    (clipa_torch: as many words as tokens have room, then what their tokens are too many is cut)."""
