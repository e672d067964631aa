"""The text tower: transformers' encoder, bidirectional (CLIPA) or causal (CLIP)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.attention import attention
from pretrain.models.options import TextTowerOptions
from pretrain.tokens.vocabulary import Vocabulary

_TRANSFORMERS_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


class TextAttention(nn.Module):
    """The weights of transformers' attention, with q, k and v as one packed product.

    They stay three parameters: an optimizer that works on matrices works on each.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, theirs: nn.Module, *, heads: int, causal: bool, explicit: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.explicit = heads, causal, explicit
        for name, part in theirs.named_children():
            self.add_module(name, part)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, None]:
        """hidden_states (B, T, D), attention_mask (B, T) bool or None → (B, T, D), as the library's
        layer calls it."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight, bias = (torch.cat([getattr(p, n) for p in parts]) for n in ("weight", "bias"))
        qkv = F.linear(hidden_states, weight, bias).unflatten(2, (3, self.heads, -1))
        packed = attention(qkv, causal=self.causal, valid=attention_mask, explicit=self.explicit)
        return self.out_proj(packed), None


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
        if options.causal:
            self.encoder = CLIPTextModel._from_config(CLIPTextConfig(**common))
        else:
            self.encoder = SiglipTextModel._from_config(SiglipTextConfig(**common))
            self.encoder.head = nn.Identity()  # the projection belongs to CLIP, for both towers
        for layer in self.encoder.encoder.layers:
            layer.self_attn = TextAttention(
                layer.self_attn,
                heads=options.heads,
                causal=options.causal,
                explicit=explicit_attention,
            )
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

    def hidden_states(self, text_ids: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, D); valid (B, T) bool: the tokens that are attended to, None for all."""
        hidden: Tensor = self.encoder.embeddings(text_ids)
        for layer in self.encoder.encoder.layers:
            hidden = layer(hidden, valid)
        return self.encoder.final_layer_norm(hidden)  # type: ignore[no-any-return]

    def forward(self, text_ids: Tensor) -> Tensor:
        """text_ids (B, T) int64, padded with the vocabulary's pad_id → (B, D)."""
        # Up to the last id that is no padding: CLIP's pad_id is a letter of texts as well ("!").
        valid = (text_ids != self.vocabulary.pad_id).flip(1).cumsum(1).flip(1) > 0
        hidden = self.hidden_states(text_ids, valid if self.options.padding_mask else None)
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
