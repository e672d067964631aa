"""The image tower: timm's VisionTransformer with CLIPA's choices and token gathering."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.checks import check_positive
from pretrain.models.positions import sincos_2d

Gelu = Literal["exact", "tanh"]


@dataclass(frozen=True, kw_only=True)
class ImageTowerOptions:
    """Shape and choices of the image tower."""

    width: int = 768
    """Width of the tower."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the tower's width."""
    patch_px: int = 16
    """Side of a patch in pixels."""
    pool: Literal["gap", "gap_cls", "cls"] = "gap"
    """gap: mean of the patches (CLIPA v2); gap_cls: mean with CLS (clipa_torch L/16); cls."""
    positions: Literal["sincos", "learned", "learned_from_sincos"] = "sincos"
    """Fixed 2-D sin-cos positions, a learned table, or a learned table that starts as sin-cos."""
    pre_norm: bool = False
    """LayerNorm before the first block, as in OpenAI's CLIP; CLIPA v2 has none."""
    gelu: Gelu = "tanh"
    """tanh (JAX, all released v2 weights) or exact (clipa_torch)."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""

    def __post_init__(self) -> None:
        shape = ("width", "depth", "heads", "mlp_ratio", "norm_eps", "patch_px")
        check_positive({f"model.image.{name}": getattr(self, name) for name in shape})
        if self.width % self.heads:
            raise ValueError(
                f"model.image.width={self.width} is not divisible by heads={self.heads}: "
                "change one of them"
            )


class ImageTower(nn.Module):
    """Pictures to one pooled vector each.

    Built for one picture size. Positions are added before tokens are gathered, so a token keeps
    its place whatever else is dropped. CLS has no position of its own: a learned CLS row would be
    a constant added to the CLS token.
    """

    def __init__(
        self, options: ImageTowerOptions, *, image_px: int, explicit_attention: bool
    ) -> None:
        # timm takes seconds to import, which a mistake in an option need not wait for.
        from timm.layers import Attention
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
        self.checkpoint_blocks = False
        activation = (
            functools.partial(nn.GELU, approximate="tanh") if options.gelu == "tanh" else nn.GELU
        )
        self.vit = VisionTransformer(
            img_size=image_px,
            patch_size=options.patch_px,
            embed_dim=options.width,
            depth=options.depth,
            num_heads=options.heads,
            mlp_ratio=options.mlp_ratio,
            num_classes=0,
            class_token=True,
            pos_embed="none",
            pre_norm=options.pre_norm,
            global_pool="token" if options.pool == "cls" else "avg",
            pool_include_prefix=options.pool == "gap_cls",
            fc_norm=options.pool != "cls",
            final_norm=True,
            norm_layer=functools.partial(nn.LayerNorm, eps=options.norm_eps),
            act_layer=activation,
            weight_init="jax",  # Xavier-uniform, as CLIPA's JAX towers
        )
        assert self.vit.cls_token is not None
        nn.init.zeros_(self.vit.cls_token)  # CLIPA JAX
        for module in self.vit.modules():
            if isinstance(module, Attention):
                module.fused_attn = not explicit_attention  # type: ignore[misc]
        self._make_positions()

    def _make_positions(self) -> None:
        width, kind = self.options.width, self.options.positions
        if kind == "sincos":
            self.register_buffer("positions", sincos_2d(width, self.grid), persistent=False)
        elif kind == "learned_from_sincos":
            self.positions = nn.Parameter(sincos_2d(width, self.grid))
        else:
            self.positions = nn.Parameter(torch.randn(self.grid**2, width) * width**-0.5)

    def forward(self, images: Tensor, keep_index: Tensor | None = None) -> Tensor:
        """images (B, 3, H, W) normalised, keep_index (B, K) int64 or None → (B, D)."""
        tokens = self.vit.patch_embed(images)
        tokens = tokens + self.positions.to(tokens.dtype)
        if keep_index is not None:
            tokens = tokens.gather(1, keep_index[:, :, None].expand(-1, -1, tokens.shape[2]))
        assert self.vit.cls_token is not None
        cls = self.vit.cls_token.expand(len(tokens), -1, -1)
        tokens = self.vit.norm_pre(torch.cat([cls, tokens], dim=1))
        for block in self.vit.blocks:
            if self.checkpoint_blocks and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)
