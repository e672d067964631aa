"""The towers equal their references, and keeping all tokens equals no reduction."""

import pytest
import torch

from pretrain.models.clip import CLIP, ModelOptions, resized_weights
from pretrain.models.image_tower import ImageTowerOptions
from pretrain.models.positions import resize_image_positions, sincos_2d
from pretrain.models.text_tower import TextTowerOptions


def clip(image_px=48, text_tokens=8, image=None, text=None, explicit=True) -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        ModelOptions(
            image=ImageTowerOptions(
                **{
                    "width": 64,
                    "depth": 3,
                    "heads": 4,
                    "patch_px": 8,
                    "gelu": "exact",
                    **(image or {}),
                }
            ),
            text=TextTowerOptions(
                **{"width": 48, "depth": 2, "heads": 4, "gelu": "exact", **(text or {})}
            ),
            embed_dim=32,
        ),
        vocab_size=100,
        image_px=image_px,
        text_tokens=text_tokens,
        explicit_attention=explicit,
    ).eval()


@pytest.mark.parametrize("pool", ["gap", "gap_cls", "cls"])
@pytest.mark.parametrize("positions", ["sincos", "learned", "learned_from_sincos"])
def test_keeping_all_tokens_equals_no_reduction_exactly(pool, positions):
    model = clip(image={"pool": pool, "positions": positions})
    images = torch.randn(2, 3, 48, 48)
    everything = torch.arange(36).expand(2, -1)
    assert torch.equal(model.encode_image(images), model.encode_image(images, everything))


def test_a_kept_token_keeps_its_position():
    """Order of the kept tokens does not matter, which ones they are does."""
    model = clip()
    images = torch.randn(1, 3, 48, 48)
    kept = torch.tensor([[3, 10, 30]])
    a = model.encode_image(images, kept)
    assert torch.allclose(a, model.encode_image(images, kept.flip(1)), atol=1e-6)
    assert not torch.allclose(a, model.encode_image(images, torch.tensor([[3, 10, 31]])), atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_explicit_and_fused_attention_agree(causal):
    text = {"causal": causal, "padding_mask": True, "pool": "eos", "specials": "bos_eos"}
    explicit, fused = clip(text=text), clip(text=text, explicit=False)
    fused.load_state_dict(explicit.state_dict())
    images = torch.randn(2, 3, 48, 48)
    ids = torch.tensor([[1, 7, 8, 2, 0, 0, 0, 0], [1, 9, 10, 11, 12, 13, 14, 2]])
    for a, b in zip(explicit(images, ids), fused(images, ids), strict=True):
        assert (a - b).abs().max() < 1e-6


def test_gradient_checkpointing_changes_no_gradient():
    plain, saving = clip().train(), clip().train()
    saving.image.checkpoint_blocks = True
    saving.text.checkpoint_blocks()
    images, ids = torch.randn(2, 3, 48, 48), torch.randint(1, 100, (2, 8))
    for model in (plain, saving):
        a, b = model(images, ids)
        (a @ b.T).square().sum().backward()
    worst = max(
        float((p.grad - q.grad).abs().max())
        for p, q in zip(plain.parameters(), saving.parameters(), strict=True)
    )
    assert worst < 1e-6, f"largest difference {worst}"


def open_clip_reference(ours: CLIP):
    """open_clip's CLIPA model of the same shape, with our weights copied into it."""
    from open_clip import model as open_clip

    reference = open_clip.CLIP(
        embed_dim=32,
        vision_cfg=open_clip.CLIPVisionCfg(
            layers=3,
            width=64,
            head_width=16,
            patch_size=8,
            image_size=48,
            no_ln_pre=True,
            pool_type="avg",
            final_ln_after_pool=True,
        ),
        text_cfg=open_clip.CLIPTextCfg(
            context_length=8,
            vocab_size=100,
            width=48,
            heads=4,
            layers=2,
            pool_type="last",
            no_causal_mask=True,
        ),
    ).eval()
    vit, text = ours.image.vit, ours.text.encoder
    with torch.no_grad():
        visual = reference.visual
        visual.conv1.weight.copy_(vit.patch_embed.proj.weight)
        visual.class_embedding.copy_(vit.cls_token[0, 0])
        visual.positional_embedding.zero_()
        # Our convolution has a bias, which is the same as a constant in every position.
        visual.positional_embedding[1:] = ours.image.positions + vit.patch_embed.proj.bias
        for block, theirs in zip(vit.blocks, visual.transformer.resblocks, strict=True):
            copy_block(theirs, block.norm1, block.norm2, block.mlp)
            theirs.attn.in_proj_weight.copy_(block.attn.qkv.weight)
            theirs.attn.in_proj_bias.copy_(block.attn.qkv.bias)
            theirs.attn.out_proj.load_state_dict(block.attn.proj.state_dict())
        visual.ln_post.load_state_dict(vit.fc_norm.state_dict())
        visual.proj.copy_(ours.image_projection.weight.T)
        reference.token_embedding.weight.copy_(text.embeddings.token_embedding.weight)
        reference.positional_embedding.copy_(text.embeddings.position_embedding.weight)
        for layer, theirs in zip(text.encoder.layers, reference.transformer.resblocks, strict=True):
            copy_block(theirs, layer.layer_norm1, layer.layer_norm2, layer.mlp)
            parts = [getattr(layer.self_attn, f"{n}_proj") for n in "qkv"]
            theirs.attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
            theirs.attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
            theirs.attn.out_proj.load_state_dict(layer.self_attn.out_proj.state_dict())
        reference.ln_final.load_state_dict(text.final_layer_norm.state_dict())
        reference.text_projection.copy_(ours.text_projection.weight.T)
    return reference


def copy_block(theirs, norm1, norm2, mlp):
    theirs.ln_1.load_state_dict(norm1.state_dict())
    theirs.ln_2.load_state_dict(norm2.state_dict())
    theirs.mlp.c_fc.load_state_dict(mlp.fc1.state_dict())
    theirs.mlp.c_proj.load_state_dict(mlp.fc2.state_dict())


def test_towers_equal_open_clips_clipa_model():
    ours = clip(image={"positions": "sincos"})
    reference = open_clip_reference(ours)
    images, ids = torch.randn(4, 3, 48, 48), torch.randint(1, 100, (4, 8))
    worst = max(
        float(
            (ours.encode_image(images) - reference.encode_image(images, normalize=True)).abs().max()
        ),
        float((ours.encode_text(ids) - reference.encode_text(ids, normalize=True)).abs().max()),
    )
    assert worst < 1e-6, f"largest difference {worst}"


def test_weights_resize_to_other_token_lengths():
    for positions in ("sincos", "learned"):
        small = clip(32, 8, image={"positions": positions})
        large = clip(48, 12, image={"positions": positions})
        large.load_state_dict(resized_weights(small.state_dict(), large))
        same = clip(32, 8, image={"positions": positions})
        same.load_state_dict(resized_weights(small.state_dict(), same))
        images, ids = torch.randn(2, 3, 32, 32), torch.randint(1, 100, (2, 8))
        assert torch.equal(small.encode_image(images), same.encode_image(images))
        assert torch.equal(small.encode_text(ids), same.encode_text(ids))
    extended = clip(32, 12, text={"positions_resize": "extend"})
    short = clip(32, 8, text={"positions_resize": "extend"})
    table = resized_weights(short.state_dict(), extended)[
        "text.encoder.embeddings.position_embedding.weight"
    ]
    assert torch.equal(table[:8], short.text.encoder.embeddings.position_embedding.weight)


def test_sincos_positions_follow_the_grid_and_resizing_keeps_a_plane():
    assert torch.equal(
        sincos_2d(16, 4).reshape(4, 4, 16), sincos_2d(16, 8).reshape(8, 8, 16)[:4, :4]
    )
    plane = torch.full((16, 3), 2.5)
    assert torch.allclose(resize_image_positions(plane, 7), torch.full((49, 3), 2.5), atol=1e-5)


def test_weights_of_another_shape_are_refused_by_name():
    weights = clip().state_dict()
    weights["unheard.of"] = weights.pop("image_projection.weight")
    with pytest.raises(ValueError, match=r"unheard\.of"):
        resized_weights(weights, clip())
