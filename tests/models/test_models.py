"""Keeping all tokens equals no reduction, and weights fit other token lengths."""

from collections import Counter

import pytest
import torch
from torch import nn
from vocabularies import of_size

from pretrain.export.open_clip import open_clip_config, open_clip_weights
from pretrain.models.clip import CLIP, resize_weights
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.positions import resize_image_positions, sincos_2d


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
        vocabulary=of_size(100),
        image_px=image_px,
        text_tokens=text_tokens,
        explicit_attention=explicit,
    ).eval()


@pytest.mark.parametrize("pool", ["gap", "gap_cls", "cls", "attention"])
@pytest.mark.parametrize("positions", ["sincos", "learned", "learned_from_sincos"])
def test_keeping_all_tokens_equals_no_reduction_exactly(pool, positions):
    model = clip(image={"pool": pool, "positions": positions})
    images = torch.randn(2, 3, 48, 48)
    everything = torch.arange(36).expand(2, -1)
    assert torch.equal(model.encode_image(images), model.encode_image(images, everything))


@pytest.mark.parametrize("pool", ["gap", "attention"])
def test_a_tower_without_cls_sees_the_kept_patches_alone(pool):
    """The patches that stay, given in another order and by hand, through timm's own tower."""
    tower = clip(image={"cls_token": False, "pool": pool, "positions": "learned"}).image.double()
    pixels, keep = torch.randn(2, 3, 48, 48).double(), torch.tensor([[0, 5, 9], [15, 2, 7]])
    tokens = tower.vit.patch_embed(pixels) + tower.positions
    hidden = torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])
    for block in tower.vit.blocks:
        hidden = block(hidden)
    hidden = tower.vit.norm(hidden)
    expected = (
        tower.vit.attn_pool(hidden) if pool == "attention" else tower.vit.fc_norm(hidden.mean(1))
    )
    assert (tower(pixels, keep) - expected).abs().max() < 1e-13
    assert not any("cls_token" in name for name, _ in tower.named_parameters())


@pytest.mark.parametrize(
    ("options", "named"),
    [({"pool": "cls"}, "pool=cls reads CLS"),
     ({"pool": "gap_cls"}, "pool=gap_cls reads CLS"),
     ({"positions": "learned", "cls_position": True}, "cls_position=True needs a CLS token")],
)  # fmt: skip
def test_what_reads_cls_is_refused_without_it(options, named):
    with pytest.raises(ValueError, match=named):
        ImageTowerOptions(cls_token=False, **options)


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


@pytest.mark.parametrize("every", [1, 2])
def test_gradient_checkpointing_changes_no_gradient(every):
    plain, saving = clip().train(), clip().train()
    saving.image.checkpoint_blocks(every)
    saving.text.checkpoint_blocks(every)
    runs: Counter[str] = Counter()
    for tower in (saving.image, saving.text):
        for index, block in enumerate(tower.blocks):
            norm = next(module for module in block.modules() if isinstance(module, nn.LayerNorm))
            name = f"{type(tower).__name__} {index}"
            norm.register_forward_hook(lambda *_, name=name: runs.update([name]))
    images, ids = torch.randn(2, 3, 48, 48), torch.randint(1, 100, (2, 8))
    for model in (plain, saving):
        a, b = model(images, ids)
        (a @ b.T).square().sum().backward()
    worst = max(
        float((p.grad - q.grad).abs().max())
        for p, q in zip(plain.parameters(), saving.parameters(), strict=True)
    )
    assert worst < 1e-6, f"largest difference {worst}"
    for name, count in runs.items():  # a recomputed block runs forward twice
        assert count == (2 if int(name.split()[1]) % every == 0 else 1), runs


def open_clip_reference(ours: CLIP):
    """open_clip's model of the same function, with our weights under its names."""
    from open_clip import model as open_clip

    reference = open_clip.CLIP(**open_clip_config(ours, logit_bias=None)).eval()
    reference.load_state_dict(open_clip_weights(ours, logit_scale=10.0, logit_bias=None))
    return reference


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({"positions": "sincos"}, {}),  # CLIPA
        ({"gelu": "tanh", "mlp_ratio": 3.0}, {"gelu": "tanh", "norm_eps": 1e-6}),  # CLIPA v2
        ({"pool": "cls", "pre_norm": True, "positions": "learned"},
         {"causal": True, "pool": "eos", "specials": "bos_eos"}),  # CLIP
        ({"pool": "cls"}, {"causal": True, "padding_mask": True, "pool": "eos", "specials": "eos"}),
        ({"positions": "learned_from_sincos"}, {"pool": "eos", "specials": "bos_eos"}),
    ],
)  # fmt: skip
def test_towers_equal_open_clips(image, text):
    ours = clip(image=image, text=text)
    torch.manual_seed(1)
    with torch.no_grad():  # biases, norms and CLS start at 0 or 1, where a wrong place is unseen
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    reference = open_clip_reference(ours)
    images, ids = torch.randn(4, 3, 48, 48), torch.randint(4, 100, (4, 8))
    for row, end in enumerate((2, 4, 5, 7)):  # an eos and padding, as real captions have
        ids[row, end], ids[row, end + 1 :] = 2, 0
    worst = max(
        float(
            (ours.encode_image(images) - reference.encode_image(images, normalize=True)).abs().max()
        ),
        float((ours.encode_text(ids) - reference.encode_text(ids, normalize=True)).abs().max()),
    )
    assert worst < 1e-6, f"largest difference {worst}"


@pytest.mark.parametrize(
    ("image", "text", "named"),
    [
        ({"pool": "gap_cls"}, {}, "model.image.pool=gap_cls"),
        ({"cls_token": False}, {}, "model.image.cls_token=False"),
        ({}, {"pool": "mean"}, "model.text.pool=mean"),
        ({}, {"padding_mask": True}, "model.text.padding_mask=True"),
        ({}, {"padding_mask": True, "causal": True}, "model.text.padding_mask=True"),
    ],
)
def test_what_open_clip_cannot_express_is_refused_by_option(image, text, named):
    with pytest.raises(ValueError, match=f"no exact counterpart of {named}: export with"):
        open_clip_config(clip(image=image, text=text), logit_bias=None)


def test_weights_resize_to_other_token_lengths():
    for positions in ("sincos", "learned"):
        small = clip(32, 8, image={"positions": positions})
        large = clip(48, 12, image={"positions": positions})
        large.load_state_dict(resize_weights(small.state_dict(), large))
        same = clip(32, 8, image={"positions": positions})
        same.load_state_dict(resize_weights(small.state_dict(), same))
        images, ids = torch.randn(2, 3, 32, 32), torch.randint(1, 100, (2, 8))
        assert torch.equal(small.encode_image(images), same.encode_image(images))
        assert torch.equal(small.encode_text(ids), same.encode_text(ids))
    extended = clip(32, 12, text={"positions_resize": "extend"})
    short = clip(32, 8, text={"positions_resize": "extend"})
    table = resize_weights(short.state_dict(), extended)[
        "text.encoder.embeddings.position_embedding.weight"
    ]
    assert torch.equal(table[:8], short.text.encoder.embeddings.position_embedding.weight)


def test_sincos_positions_follow_the_grid_and_resizing_keeps_a_plane():
    assert torch.equal(
        sincos_2d(16, 4).reshape(4, 4, 16), sincos_2d(16, 8).reshape(8, 8, 16)[:4, :4]
    )
    # CLIPA JAX's last frequency is 1/T itself, clipa_torch's stops before it.
    width = 16
    for jax, last in ((True, 1e-4), (False, 1e4 ** -(3 / 4))):
        sines = sincos_2d(width, 8, jax=jax)[5, : width // 4]  # x = 5, y = 0
        assert torch.allclose(sines[-1], torch.tensor(5 * last).sin(), atol=1e-7), jax
    plane = torch.full((16, 3), 2.5)
    assert torch.allclose(resize_image_positions(plane, 7), torch.full((49, 3), 2.5), atol=1e-5)


def test_a_fixed_table_has_no_row_for_cls():
    with pytest.raises(ValueError, match=r"model\.image\.cls_position=True with positions=sincos"):
        ImageTowerOptions(cls_position=True)
    with_row = clip(image={"positions": "learned_from_sincos", "cls_position": True})
    assert torch.equal(with_row.image.positions[0], torch.zeros(64))
    assert torch.equal(with_row.image.positions[1:], sincos_2d(64, 6))


def test_weights_of_another_shape_are_refused_by_name():
    weights = clip().state_dict()
    weights["unheard.of"] = weights.pop("image_projection.weight")
    with pytest.raises(ValueError, match=r"unheard\.of"):
        resize_weights(weights, clip())


def test_the_gradient_of_positions_is_summed_in_fp32_under_a_mask():
    """bf16 on a CPU, many samples that keep the same tokens."""
    from pretrain.models.image_tower import ImageTower

    torch.manual_seed(0)
    options = ImageTowerOptions(
        width=32, depth=1, heads=1, patch_px=8, positions="learned", cls_token=False
    )
    tower = ImageTower(options, image_px=32, explicit_attention=True).bfloat16()
    images = torch.randn(1024, 3, 32, 32, dtype=torch.bfloat16)
    keep = torch.rand(1024, 16).argsort(1)[:, :8]
    tokens = tower._embedded(images, keep)
    given = torch.randn_like(tokens)
    tokens.backward(given)
    wanted = torch.zeros(16, 32, dtype=torch.float64)
    wanted.index_add_(0, keep.flatten(), given.double().flatten(0, 1))
    error = float((tower.positions.grad.double() - wanted).norm() / wanted.norm())
    assert error < 4e-3, f"{error:.1e}"  # a rounding to bf16
