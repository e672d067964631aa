"""The text tower: transformers' encoder, bidirectional (CLIPA) or causal (CLIP)."""

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.options import TextTowerOptions
from pretrain.tokens.vocabulary import Vocabulary

_TRANSFORMERS_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


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
