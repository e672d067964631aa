"""The text tower: transformers' encoder, bidirectional (CLIPA) or causal (CLIP)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.base.checks import check_positive
from pretrain.models.image_tower import Gelu
from pretrain.tokens.context import Specials
from pretrain.tokens.vocabulary import Vocabulary

_TRANSFORMERS_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


@dataclass(frozen=True, kw_only=True)
class TextTowerOptions:
    """Shape and choices of the text tower."""

    width: int = 512
    """Width of the tower."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 8
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the tower's width."""
    causal: bool = False
    """Attention to the left only (CLIP, clipa_torch v1) or to all tokens (CLIPA JAX and v2)."""
    padding_mask: bool = False
    """Hide padding from attention; CLIPA's towers attend to it."""
    pool: Literal["last", "eos", "highest_id", "mean"] = "last"
    """Pooled place: the last position (CLIPA), the eos token (CLIP), that of the highest id (eos in
    the vocabulary of OpenAI's CLIP), or the mean of the tokens."""
    specials: Specials = "bos"
    """Special tokens around a caption: CLIPA JAX has a leading one only, CLIP both."""
    positions_resize: Literal["interpolate", "extend"] = "interpolate"
    """A longer context stretches the position table (clipa_torch), or continues it."""
    gelu: Gelu = "tanh"
    """tanh (JAX, all released v2 weights), exact (clipa_torch), or quick (OpenAI's CLIP)."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""

    def __post_init__(self) -> None:
        if self.pool == "eos" and self.specials == "bos":
            raise ValueError(
                "model.text.pool=eos but specials=bos adds no eos: set specials to eos or bos_eos"
            )
        shape = ("width", "depth", "heads", "mlp_ratio", "norm_eps")
        check_positive({f"model.text.{name}": getattr(self, name) for name in shape})
        if self.width % self.heads:
            raise ValueError(
                f"model.text.width={self.width} is not divisible by heads={self.heads}: "
                "change one of them"
            )


class TextTower(nn.Module):
    """Token ids to one pooled vector each; built for one context length."""

    def __init__(
        self,
        options: TextTowerOptions,
        *,
        vocabulary: Vocabulary,
        text_tokens: int,
        explicit_attention: bool,
    ) -> None:
        # transformers takes seconds to import, which a mistake in an option need not wait for.
        from transformers import CLIPTextConfig, CLIPTextModel, SiglipTextConfig, SiglipTextModel

        super().__init__()
        if vocabulary.pad_id == vocabulary.eos_id and (
            options.padding_mask or options.pool == "mean"
        ):
            raise ValueError(
                f"model.text.padding_mask={options.padding_mask}, pool={options.pool}: the "
                f"tokenizer pads with its end token {vocabulary.eos_id}, which cannot be told from "
                "padding; set padding_mask to false and pool to last"
            )
        self.options = options
        self.text_tokens = text_tokens
        self.vocabulary = vocabulary
        common: dict[str, Any] = dict(
            vocab_size=vocabulary.size,
            hidden_size=options.width,
            intermediate_size=int(options.width * options.mlp_ratio),
            num_hidden_layers=options.depth,
            num_attention_heads=options.heads,
            max_position_embeddings=text_tokens,
            layer_norm_eps=options.norm_eps,
            hidden_act=_TRANSFORMERS_GELU[options.gelu],
            attention_dropout=0.0,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.bos_id,
            eos_token_id=vocabulary.eos_id,
        )
        attention = "eager" if explicit_attention else "sdpa"
        if options.causal:
            self.encoder = CLIPTextModel._from_config(
                CLIPTextConfig(**common), attn_implementation=attention
            )
        else:
            self.encoder = SiglipTextModel._from_config(
                SiglipTextConfig(**common), attn_implementation=attention
            )
            self.encoder.head = nn.Identity()  # the projection belongs to CLIP, for both towers
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """CLIP's initialisation: arXiv 2103.00020's code, kept by clipa_torch and open_clip."""
        width, depth = self.options.width, self.options.depth
        std = {
            "token_embedding": 0.02,
            "position_embedding": 0.01,
            "q_proj": width**-0.5,
            "k_proj": width**-0.5,
            "v_proj": width**-0.5,
            "out_proj": width**-0.5 * (2 * depth) ** -0.5,
            "fc1": (2 * width) ** -0.5,
            "fc2": width**-0.5 * (2 * depth) ** -0.5,
        }
        for name, module in self.encoder.named_modules():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in std:
                nn.init.normal_(module.weight, std=std[leaf])
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        return list(self.encoder.encoder.layers)

    @property
    def embedding_parameters(self) -> list[nn.Parameter]:
        """What makes the first block's input."""
        return list(self.encoder.embeddings.parameters())

    def checkpoint_blocks(self, every: int) -> None:
        """Recompute every k-th block in the backward pass instead of keeping its activations."""
        self.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        for index, block in enumerate(self.blocks):
            block.gradient_checkpointing = index % every == 0  # type: ignore[assignment]

    def forward(self, text_ids: Tensor) -> Tensor:
        """text_ids (B, T) int64, padded with the vocabulary's pad_id → (B, D)."""
        # Up to the last id that is no padding: CLIP's pad_id is a letter of texts as well ("!").
        valid = (text_ids != self.vocabulary.pad_id).flip(1).cumsum(1).flip(1) > 0
        hidden = self.encoder(
            input_ids=text_ids, attention_mask=valid if self.options.padding_mask else None
        ).last_hidden_state
        if self.options.pool == "last":
            return hidden[:, -1]
        if self.options.pool in ("eos", "highest_id"):
            is_place = (
                text_ids == self.vocabulary.eos_id if self.options.pool == "eos" else text_ids
            )
            place = is_place.int().argmax(dim=1)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
        weight = valid.to(hidden.dtype)[:, :, None]
        return (hidden * weight).sum(1) / weight.sum(1)
