"""The image tower: timm's VisionTransformer with CLIPA's choices and token gathering."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.models.attention import attention
from pretrain.models.options import ImageTowerOptions
from pretrain.models.positions import sincos_2d

_TIMM_GELU = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}


class ImageAttention(nn.Module):
    """The weights of timm's attention, with attention on its packed q, k and v."""

    def __init__(self, theirs: Any, *, explicit: bool) -> None:
        super().__init__()
        self.heads, self.explicit = theirs.num_heads, explicit
        self.qkv, self.proj = theirs.qkv, theirs.proj

    def forward(self, tokens: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) → (B, N, D); the other arguments are those that timm's block gives."""
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))
        packed = attention(qkv, causal=is_causal, valid=attn_mask, explicit=self.explicit)
        return self.proj(packed)  # type: ignore[no-any-return]


class ImageTower(nn.Module):
    """Pictures to one pooled vector each.

    Built for one picture size. A kept token keeps its own position, whatever else is dropped.
    Without cls_position CLS has none of its own: a learned row for it adds a constant to the CLS
    token, so that no formula is lost.
    """

    positions: Tensor

    def __init__(
        self, options: ImageTowerOptions, *, image_px: int, explicit_attention: bool
    ) -> None:
        # timm takes seconds to import, which a mistake in an option need not wait for.
        from timm.layers import AttentionPoolLatent, PatchEmbed
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        if image_px % options.patch_px:
            raise ValueError(
                f"image_px={image_px} is not divisible by model.image.patch_px="
                f"{options.patch_px}: choose a multiple"
            )
        self.options = options
        self.image_px = image_px
        self.grid = image_px // options.patch_px
        self._checkpoint_every: int | None = None
        pooling: dict[str, Any] = {"cls": "token", "attention": "map"}

        def patch_embedding(**timms: Any) -> PatchEmbed:
            return PatchEmbed(**{**timms, "bias": options.has_patch_bias})

        self.vit = VisionTransformer(
            img_size=image_px,
            patch_size=options.patch_px,
            embed_dim=options.width,
            depth=options.depth,
            num_heads=options.heads,
            mlp_ratio=options.mlp_ratio,
            num_classes=0,
            class_token=options.cls_token,
            pos_embed="none",
            pre_norm=options.pre_norm,
            global_pool=pooling.get(options.pool, "avg"),
            pool_include_prefix=options.pool == "gap_cls",
            fc_norm=options.pool.startswith("gap"),
            final_norm=True,
            norm_layer=functools.partial(nn.LayerNorm, eps=options.norm_eps),
            act_layer=_TIMM_GELU[options.gelu],
            embed_layer=patch_embedding,
            weight_init="jax" if options.init == "xavier" else "skip",
        )
        if options.init == "xavier":
            if self.vit.cls_token is not None:
                nn.init.zeros_(self.vit.cls_token)
        else:
            self._initialise_as_torch()
        block: Any
        for block in self.vit.blocks:
            block.attn = ImageAttention(block.attn, explicit=explicit_attention)
        if isinstance(self.vit.attn_pool, AttentionPoolLatent):
            self.vit.attn_pool.fused_attn = not explicit_attention  # type: ignore[misc]
        self._make_positions()

    @torch.no_grad()
    def _initialise_as_torch(self) -> None:
        """What timm's layers do not start with by themselves: nn.MultiheadAttention's defaults
        (one Xavier matrix for q, k and v, biases zero), and CLIP's CLS (arXiv 2103.00020)."""
        if self.vit.cls_token is not None:
            nn.init.normal_(self.vit.cls_token, std=self.options.width**-0.5)
        block: Any
        for block in self.vit.blocks:
            nn.init.xavier_uniform_(block.attn.qkv.weight)
            nn.init.zeros_(block.attn.qkv.bias)
            nn.init.zeros_(block.attn.proj.bias)

    def _make_positions(self) -> None:
        """`positions` (N, D), or (1 + N, D) where CLS has a row: the first."""
        width, kind, has_cls = self.options.width, self.options.positions, self.options.cls_position
        if kind == "learned":
            rows = self.grid**2 + has_cls
            self.positions = nn.Parameter(torch.randn(rows, width) * width**-0.5)
            return
        table = sincos_2d(width, self.grid, jax=kind == "sincos_jax")
        if kind == "learned_from_sincos":
            self.positions = nn.Parameter(F.pad(table, (0, 0, int(has_cls), 0)))
        else:
            self.register_buffer("positions", table, persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        return list(self.vit.blocks)

    @property
    def embedding_parameters(self) -> list[nn.Parameter]:
        """What makes the first block's input."""
        own = (self.positions, self.vit.cls_token)
        modules = (self.vit.patch_embed, self.vit.norm_pre)
        return [
            *(p for p in own if isinstance(p, nn.Parameter)),
            *(p for m in modules for p in m.parameters()),
        ]

    def checkpoint_blocks(self, every: int) -> None:
        """Recompute every k-th block in the backward pass instead of keeping its activations."""
        self._checkpoint_every = every

    def _embedded(self, images: Tensor, keep_index: Tensor | None) -> Tensor:
        """(B, K, D): timm's convolution of the kept patches alone, as a product, and positions."""
        grid, px = self.grid, self.options.patch_px
        rows = images.unflatten(3, (grid, px)).unflatten(2, (grid, px))  # (B, 3, g, px, g, px)
        cells = rows.permute(0, 2, 4, 1, 3, 5)
        positions = self.positions[-(grid**2) :]
        if keep_index is None:
            cells = cells.flatten(1, 2)
        else:
            sample = torch.arange(len(images), device=images.device)[:, None]
            cells = cells[sample, keep_index // grid, keep_index % grid]
            # In fp32: on a CPU the gradient of a row is summed over the batch in the row's type.
            positions = F.embedding(keep_index, positions.float())
        convolution = self.vit.patch_embed.proj
        tokens = F.linear(cells.flatten(2), convolution.weight.flatten(1), convolution.bias)
        return tokens + positions.to(tokens.dtype)

    def forward(self, images: Tensor, keep_index: Tensor | None = None) -> Tensor:
        """images (B, 3, H, W) normalised, keep_index (B, K) int64 or None → (B, D)."""
        tokens = self._embedded(images, keep_index)
        cls: Tensor | None = self.vit.cls_token
        if cls is not None:
            if self.options.cls_position:
                cls = cls + self.positions[0].to(tokens.dtype)
            tokens = torch.cat([cls.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.vit.norm_pre(tokens)
        every = self._checkpoint_every if self.training else None
        for index, block in enumerate(self.vit.blocks):
            if every is not None and index % every == 0:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)
