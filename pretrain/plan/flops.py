"""Parameters, tokens and FLOPs of a recipe's stages.

Counted as open_clip's model_profile.csv and CLIPA's tables do: 2 FLOPs a multiply-add of every
matrix product, attention's scores included; norms, softmax and activations are not counted.
"""

from dataclasses import dataclass, replace

import torch

from pretrain.engine.options import TowerName
from pretrain.losses.classification import CaptionClassifier
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP
from pretrain.models.options import ModelOptions
from pretrain.recipe.recipe import Recipe, image_tokens
from pretrain.recipe.stages import StageOptions
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one sample in one forward, by tower; the caption classifier's apart."""

    image: float
    text: float
    classifier: float = 0.0

    @property
    def forward(self) -> float:
        return self.image + self.text + self.classifier

    def executed(
        self,
        *,
        recompute_image: float = 0.0,
        recompute_text: float = 0.0,
        two_passes: bool,
        locked: TowerName | None = None,
    ) -> float:
        """One training step's share: forward and a backward of twice that, another forward of the
        share of a tower that recomputes its blocks, and another of both where features are cached
        first. A locked tower runs forward alone (the backward of its projection, a thousandth, is
        left out)."""
        passes = {
            "image": 1 if locked == "image" else 3 + recompute_image,
            "text": 1 if locked == "text" else 3 + recompute_text,
        }
        return (
            (passes["image"] + two_passes) * self.image
            + (passes["text"] + two_passes) * self.text
            + (3 + two_passes) * self.classifier
        )


def _blocks(seq_len: int, width: int, depth: int, mlp_ratio: float) -> float:
    """q, k, v and output 4 D² and the MLP 2 D H multiply-adds a token; scores and their use 2 N D
    a token, whatever is masked of them."""
    hidden = int(width * mlp_ratio)
    return 2 * depth * seq_len * (4 * width**2 + 2 * width * hidden + 2 * seq_len * width)


def _attention_pool(kept: int, width: int, mlp_ratio: float) -> float:
    """Of one query over the patches: keys and values 2 D² a token, the scores and their use 2 D a
    token; the query's own map, the output's and the MLP once."""
    hidden = int(width * mlp_ratio)
    return 2 * (kept * (2 * width**2 + 2 * width) + 2 * width**2 + 2 * width * hidden)


def forward_flops(model: ModelOptions, *, kept: int, text_tokens: int) -> Flops:
    """Of one sample: `kept` patch tokens, which alone are embedded, and CLS beside them."""
    image, text = model.image, model.text
    pool = _attention_pool(kept, image.width, image.mlp_ratio)
    return Flops(
        image=_blocks(image.seq_len(kept), image.width, image.depth, image.mlp_ratio)
        + (image.pool == "attention") * pool
        + 2 * kept * 3 * image.patch_px**2 * image.width
        + model.image_projection * 2 * image.width * model.embed_dim,
        text=_blocks(text_tokens, text.width, text.depth, text.mlp_ratio)
        + 2 * text.width * model.embed_dim,
    )


def stage_flops(recipe: Recipe, stage: StageOptions, vocab_size: int) -> Flops:
    """Of one sample of a stage, whose caption classifier, if any, tells all ids apart."""
    kept, _ = image_tokens(recipe, stage)
    towers = forward_flops(recipe.model, kept=kept, text_tokens=stage.tokens.text_tokens)
    if recipe.loss.classification_weight is None:
        return towers
    return replace(towers, classifier=2 * recipe.model.image.width * vocab_size)


def count_executed(recipe: Recipe, stage: StageOptions, ranks: int, vocab_size: int) -> float:
    """Of one sample of a stage in training, all that is computed of it on so many ranks."""
    local = stage.global_batch_samples // ranks
    every = recipe.engine.checkpoint_every
    image, text = recipe.model.image.depth, recipe.model.text.depth
    return stage_flops(recipe, stage, vocab_size).executed(
        recompute_image=recipe.engine.checkpoint_image * -(-image // every) / image,
        recompute_text=recipe.engine.checkpoint_text * -(-text // every) / text,
        two_passes=(stage.micro_batch_samples or local) < local,
        locked=stage.locked,
    )


def loss_flops(embed_dim: int, global_batch: int) -> float:
    """Of one sample against all texts of the batch: its logits, these again in the backward pass,
    and the gradients of both sides."""
    return 4 * 2 * global_batch * embed_dim


def meta_model(
    model: ModelOptions, tokens: TokenOptions, vocab_size: int, *, classifies: bool = False
) -> CLIP:
    """The model itself, without memory for its weights: its parameters' names and shapes.
    classifies: with a caption classifier."""
    meta = torch.device("meta")
    # Which ids are special changes no shape.
    vocabulary = Vocabulary(size=vocab_size, pad_id=0, bos_id=1, eos_id=2)
    with meta:
        built = build_model(model, tokens=tokens, vocabulary=vocabulary, device=meta)
        if classifies:
            counts = torch.zeros(vocab_size, dtype=torch.int64)
            built.classifier = CaptionClassifier(built, counts=counts, captions=1)
    return built


def count_parameters(module: torch.nn.Module) -> dict[str, int]:
    """Parameters by tower, each with its projection; the caption classifier's are the image's."""
    counts = {"image": 0, "text": 0}
    for name, parameter in module.named_parameters():
        counts["text" if name.startswith("text") else "image"] += parameter.numel()
    return counts
