"""Which parameters are decayed: full lists of both kinds of either tower, typed by hand."""

import open_clip
import torch
from vocabularies import of_size

from pretrain.engine.optimizers import parameter_groups
from pretrain.engine.options import OptimizerOptions
from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions

# CLIPA JAX decays `*/kernel` alone: no table, no position, no CLS, no probe of a pooling head.
MAP_HEAD_DECAYED = """
image.vit.patch_embed.proj.weight
image.vit.blocks.0.attn.qkv.weight image.vit.blocks.0.attn.proj.weight
image.vit.blocks.0.mlp.fc1.weight image.vit.blocks.0.mlp.fc2.weight
image.vit.attn_pool.q.weight image.vit.attn_pool.kv.weight image.vit.attn_pool.proj.weight
image.vit.attn_pool.mlp.fc1.weight image.vit.attn_pool.mlp.fc2.weight
image_projection.weight
"""
MAP_HEAD_UNDECAYED = """
image.positions image.vit.cls_token image.vit.patch_embed.proj.bias
image.vit.blocks.0.norm1.weight image.vit.blocks.0.norm1.bias
image.vit.blocks.0.attn.qkv.bias image.vit.blocks.0.attn.proj.bias
image.vit.blocks.0.norm2.weight image.vit.blocks.0.norm2.bias
image.vit.blocks.0.mlp.fc1.bias image.vit.blocks.0.mlp.fc2.bias
image.vit.norm.weight image.vit.norm.bias
image.vit.attn_pool.latent
image.vit.attn_pool.q.bias image.vit.attn_pool.kv.bias image.vit.attn_pool.proj.bias
image.vit.attn_pool.norm.weight image.vit.attn_pool.norm.bias
image.vit.attn_pool.mlp.fc1.bias image.vit.attn_pool.mlp.fc2.bias
"""
STOCK_DECAYED = """
image.vit.patch_embed.proj.weight
image.vit.blocks.0.attn.qkv.weight image.vit.blocks.0.attn.proj.weight
image.vit.blocks.0.mlp.fc1.weight image.vit.blocks.0.mlp.fc2.weight
image_projection.weight
"""
STOCK_UNDECAYED = """
image.positions image.vit.cls_token
image.vit.norm_pre.weight image.vit.norm_pre.bias
image.vit.blocks.0.norm1.weight image.vit.blocks.0.norm1.bias
image.vit.blocks.0.attn.qkv.bias image.vit.blocks.0.attn.proj.bias
image.vit.blocks.0.norm2.weight image.vit.blocks.0.norm2.bias
image.vit.blocks.0.mlp.fc1.bias image.vit.blocks.0.mlp.fc2.bias
image.vit.norm.weight image.vit.norm.bias
"""
# The causal and the bidirectional text tower are two classes with one set of names.
TEXT_DECAYED = """
text.encoder.encoder.layers.0.self_attn.q_proj.weight
text.encoder.encoder.layers.0.self_attn.k_proj.weight
text.encoder.encoder.layers.0.self_attn.v_proj.weight
text.encoder.encoder.layers.0.self_attn.out_proj.weight
text.encoder.encoder.layers.0.mlp.fc1.weight text.encoder.encoder.layers.0.mlp.fc2.weight
text_projection.weight
"""
TEXT_UNDECAYED = """
text.encoder.embeddings.token_embedding.weight text.encoder.embeddings.position_embedding.weight
text.encoder.encoder.layers.0.self_attn.q_proj.bias
text.encoder.encoder.layers.0.self_attn.k_proj.bias
text.encoder.encoder.layers.0.self_attn.v_proj.bias
text.encoder.encoder.layers.0.self_attn.out_proj.bias
text.encoder.encoder.layers.0.layer_norm1.weight text.encoder.encoder.layers.0.layer_norm1.bias
text.encoder.encoder.layers.0.layer_norm2.weight text.encoder.encoder.layers.0.layer_norm2.bias
text.encoder.encoder.layers.0.mlp.fc1.bias text.encoder.encoder.layers.0.mlp.fc2.bias
text.encoder.final_layer_norm.weight text.encoder.final_layer_norm.bias
"""


def one_block_clip(image: dict, *, causal: bool, depth: tuple[int, int] = (1, 1)) -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        ModelOptions(
            image=ImageTowerOptions(width=32, depth=depth[0], heads=2, patch_px=8, **image),
            text=TextTowerOptions(width=32, depth=depth[1], heads=2, causal=causal),
            embed_dim=16,
        ),
        vocabulary=of_size(50),
        image_px=32,
        text_tokens=6,
        explicit_attention=True,
    )


def named_groups(
    model: CLIP, options: OptimizerOptions, layer_decay: float | None = None
) -> list[tuple[set[str], dict]]:
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, options, layer_decay)
    assert sum(len(g["params"]) for g in groups) == len(names), "a parameter in two groups"
    return [({names[id(p)] for p in group["params"]}, group) for group in groups]


def check_decay(model: CLIP, decayed: str, undecayed: str) -> None:
    for kind in ("adamw", "muon"):
        found: dict[bool, set[str]] = {True: set(), False: set()}
        for names, group in named_groups(model, OptimizerOptions(kind=kind)):
            assert group["weight_decay"] in (0.2, 0.0)
            found[group["weight_decay"] > 0] |= names
        assert found == {True: set(decayed.split()), False: set(undecayed.split())}, kind


def test_attention_pooling_decays_its_maps_and_not_its_probe():
    model = one_block_clip({"pool": "attention", "positions": "learned"}, causal=False)
    check_decay(model, MAP_HEAD_DECAYED + TEXT_DECAYED, MAP_HEAD_UNDECAYED + TEXT_UNDECAYED)


def test_the_stock_towers_decay_their_maps_alone():
    choices = {"pool": "cls", "positions": "learned", "cls_position": True, "pre_norm": True}
    model = one_block_clip(choices, causal=True)
    check_decay(model, STOCK_DECAYED + TEXT_DECAYED, STOCK_UNDECAYED + TEXT_UNDECAYED)


def test_tables_are_decayed_as_clipa_torch_decays_its_own():
    choices = {"pool": "cls", "positions": "learned", "cls_position": True, "pre_norm": True}
    model = one_block_clip(choices, causal=True)
    theirs = open_clip.CLIP(
        16,
        vision_cfg=dict(image_size=32, layers=1, width=32, head_width=16, patch_size=8),
        text_cfg=dict(context_length=6, vocab_size=50, width=32, heads=2, layers=1),
    )
    # clipa_torch, training/main.py: what is left out of the decay.
    wanted = sum(
        p.numel()
        for n, p in theirs.named_parameters()
        if not (p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n)
    )
    groups = named_groups(model, OptimizerOptions(decay_tables=True))
    decayed = [g for _, g in groups if g["weight_decay"] > 0]
    assert sum(p.numel() for g in decayed for p in g["params"]) == wanted
    tables = {"image.positions", *(n for n in TEXT_UNDECAYED.split() if "embedding" in n)}
    names = {n for found, group in groups if group["weight_decay"] > 0 for n in found}
    assert names == {*STOCK_DECAYED.split(), *TEXT_DECAYED.split(), *tables}


# Three blocks of the image tower, one of the text tower, layer_decay 0.5: 0.5^(layers above).
RATES = {
    "image.positions": 0.0625,
    "image.vit.cls_token": 0.0625,
    "image.vit.patch_embed.proj.weight": 0.0625,
    "image.vit.norm_pre.bias": 0.0625,
    "image.vit.blocks.0.mlp.fc1.weight": 0.125,
    "image.vit.blocks.1.norm1.weight": 0.25,
    "image.vit.blocks.2.attn.qkv.bias": 0.5,
    "image.vit.attn_pool.latent": 1.0,
    "image.vit.attn_pool.kv.weight": 1.0,
    "image.vit.norm.weight": 1.0,
    "image_projection.weight": 1.0,
    "text.encoder.embeddings.token_embedding.weight": 0.25,
    "text.encoder.embeddings.position_embedding.weight": 0.25,
    "text.encoder.encoder.layers.0.self_attn.q_proj.weight": 0.5,
    "text.encoder.final_layer_norm.weight": 1.0,
    "text_projection.weight": 1.0,
}


def test_layer_decay_lowers_the_rate_towards_the_embeddings():
    choices = {"pool": "attention", "positions": "learned", "pre_norm": True}
    model = one_block_clip(choices, causal=False, depth=(3, 1))
    for kind in ("adamw", "muon"):
        options = OptimizerOptions(kind=kind, muon_lr_scale=8.0)
        groups = named_groups(model, options, layer_decay=0.5)
        found = {
            name: group["lr_scale"] / (8 if group.get("use_muon") else 1)
            for names, group in groups
            for name in names
        }
        assert {name: found[name] for name in RATES} == RATES, kind
        assert all(group["lr_scale"] in (1, 8) for _, group in named_groups(model, options))
        assert found["image.vit.blocks.0.norm2.bias"] == 0.125
