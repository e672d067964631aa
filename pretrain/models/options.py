"""Options of the two towers, of CLIP, and of the weights to start from. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pretrain.base.checks import check_at_most, check_positive
from pretrain.tokens.context import Specials

# Ten times what the largest published towers have.
_MOST_WIDE, _MOST_DEEP, _MOST_PATCH_PX = 1 << 16, 1000, 1 << 10
# Long-CLIP (arXiv 2403.15378, section 3.1): so many places are well trained by short captions.
KEPT_TEXT_POSITIONS = 20
PresetName = Literal["S/16", "B/16", "L/16", "L/14", "H/14", "g/14", "bigG/14"]
Gelu = Literal["exact", "tanh", "quick"]


def _check_size(option: str, width: int, depth: int, mlp_ratio: float) -> None:
    """ValueError where a tower is larger than any machine could build."""
    check_at_most({f"{option}.width": width, f"{option}.mlp_ratio": mlp_ratio}, _MOST_WIDE)
    check_at_most({f"{option}.depth": depth}, _MOST_DEEP)
    if width * mlp_ratio > 4 * _MOST_WIDE:
        raise ValueError(
            f"{option}.width={width} and mlp_ratio={mlp_ratio}: the MLP can be at most "
            f"{4 * _MOST_WIDE:,} wide"
        )


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
    pool: Literal["gap", "gap_cls", "cls", "attention"] = "gap"
    """gap: mean of the patches (CLIPA v2); gap_cls: mean with CLS (clipa_torch L/16); cls; or
    attention: of one learned query over the patches (big_vision's MAP head, as in SigLIP)."""
    cls_token: bool = True
    """A CLS token before the patches (CLIP, CLIPA), or none (SigLIP): then pool is gap or
    attention."""
    positions: Literal["sincos", "sincos_jax", "learned", "learned_from_sincos"] = "sincos"
    """Fixed 2-D sin-cos positions (sincos: clipa_torch's frequencies, sincos_jax: CLIPA JAX's), a
    learned table, or a learned table that starts as sin-cos."""
    cls_position: bool = False
    """CLS has a row of the learned table too, as in open_clip's towers."""
    pre_norm: bool = False
    """LayerNorm before the first block, as in OpenAI's CLIP; CLIPA v2 has none."""
    patch_bias: bool | None = None
    """Bias of the patch embedding (CLIPA JAX; open_clip has none); by default, unless pre_norm."""
    gelu: Gelu = "tanh"
    """tanh (JAX, all released v2 weights), exact (clipa_torch), or quick (OpenAI's CLIP)."""
    init: Literal["xavier", "torch"] = "xavier"
    """Random start: xavier, CLS at zero (CLIPA JAX), or PyTorch's defaults, CLS of std width^-0.5
    (clipa_torch, open_clip)."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""

    def __post_init__(self) -> None:
        shape = ("width", "depth", "heads", "mlp_ratio", "norm_eps", "patch_px")
        check_positive({f"model.image.{name}": getattr(self, name) for name in shape})
        _check_size("model.image", self.width, self.depth, self.mlp_ratio)
        check_at_most({"model.image.patch_px": self.patch_px}, _MOST_PATCH_PX)
        if self.width % 4 and "sincos" in self.positions:
            raise ValueError(
                f"model.image.width={self.width} is not divisible by 4: sin-cos positions need "
                "that; choose another width or model.image.positions=learned"
            )
        if self.width % self.heads:
            raise ValueError(
                f"model.image.width={self.width} is not divisible by heads={self.heads}: "
                "change one of them"
            )
        if not self.cls_token and self.pool in ("gap_cls", "cls"):
            raise ValueError(
                f"model.image.pool={self.pool} reads CLS, and cls_token=False has none: set pool "
                "to gap or attention, or cls_token to true"
            )
        if not self.cls_token and self.cls_position:
            raise ValueError(
                "model.image.cls_position=True needs a CLS token, and cls_token=False has none: "
                "change one of them"
            )
        if self.cls_position and self.positions.startswith("sincos"):
            raise ValueError(
                f"model.image.cls_position=True with positions={self.positions}: the fixed table's "
                "CLS row is zero; set cls_position to false, or positions to learned"
            )

    @property
    def has_patch_bias(self) -> bool:
        return not self.pre_norm if self.patch_bias is None else self.patch_bias

    def seq_len(self, kept_tokens: int) -> int:
        """Tokens that the blocks see: the kept patches, and CLS where there is one."""
        return kept_tokens + self.cls_token


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
    positions_resize: Literal["interpolate", "extend", "stretch_tail"] = "interpolate"
    """A longer context stretches the position table (clipa_torch), continues it, or keeps its first
    20 rows and stretches the others (stretch_tail: Long-CLIP)."""
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
        _check_size("model.text", self.width, self.depth, self.mlp_ratio)
        if self.width % self.heads:
            raise ValueError(
                f"model.text.width={self.width} is not divisible by heads={self.heads}: "
                "change one of them"
            )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Two towers and the width of the space they share."""

    preset: PresetName | None = None
    """Shape of a published model, under the other options of the same file or command line. Only a
    recipe's word: once read, its numbers stand in its place and this is null."""
    image: ImageTowerOptions = field(default_factory=ImageTowerOptions)
    """The image tower."""
    text: TextTowerOptions = field(default_factory=TextTowerOptions)
    """The text tower."""
    embed_dim: int = 512
    """Width of the shared embedding."""
    image_projection: bool = True
    """A linear map from the image tower into the shared space (CLIP), or none: the pooled picture
    is its embedding (SigLIP), and embed_dim is model.image.width."""
    text_projection_bias: bool = False
    """A bias in the text tower's map into the shared space, as in SigLIP; CLIP has none."""

    def __post_init__(self) -> None:
        if self.preset is not None:
            raise ValueError(
                f"model.preset={self.preset} was not read as a preset: give it as --model.preset, "
                "or as `model: {preset: ...}` in a --config file"
            )
        check_positive({"model.embed_dim": self.embed_dim})
        check_at_most({"model.embed_dim": self.embed_dim}, _MOST_WIDE)
        if not self.image_projection and self.embed_dim != self.image.width:
            raise ValueError(
                f"model.image_projection=False with embed_dim={self.embed_dim}: a picture's "
                f"embedding is model.image.width={self.image.width} wide; set embed_dim to that"
            )


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Weights that the first stage starts from; by default random ones."""

    export: Path | None = None
    """Folder written by `python -m pretrain.export` or `pretrain.convert`: both towers, their
    projections and the loss's scale. The dataset must have its tokenizer, the recipe its model and
    pixels (--config FOLDER/recipe.yaml behind the recipe's)."""
    accept_differences: bool = False
    """Start from an export although it was trained under another data.normalisation, or its towers
    compute otherwise (heads, gelu, norm_eps, causal, padding_mask, pool, specials)."""
    image: Path | None = None
    """File of a timm VisionTransformer (safetensors, or torch.save of tensors alone): the image
    tower. Positions are resized to the first stage's grid; the classifier is left out. Not in the
    file: gelu (timm's is exact) and norm_eps (timm's is 1e-6)."""
    text: Path | None = None
    """File of a transformers CLIPTextModel (model.text.causal) or SiglipTextModel, or of the whole
    CLIP: the text tower. The dataset must have its vocabulary. Not in the file: gelu, norm_eps."""

    def __post_init__(self) -> None:
        if self.export is not None and (self.image is not None or self.text is not None):
            raise ValueError(
                f"start.export={self.export} is a whole model: set start.image and start.text to "
                "null, or start.export"
            )
