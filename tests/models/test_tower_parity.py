"""The towers equal open_clip's published models: on copied weights, at every picture size."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vocabularies import of_size

from pretrain.models.clip import CLIP, resize_weights
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.presets import PRESETS

# CLIPA v2's towers, and the stock ones of open_clip: every choice beside the shape.
CLIPA = (
    {"pool": "gap", "positions": "learned", "cls_position": True, "patch_bias": False},
    {"pool": "last"},
)
STOCK = (
    {"pool": "cls", "positions": "learned", "cls_position": True, "pre_norm": True},
    {"pool": "highest_id", "causal": True, "specials": "bos_eos"},
)
CASES = {
    "ViT-L-14-CLIPA": ("L/14", CLIPA),
    "ViT-H-14-CLIPA": ("H/14", CLIPA),
    "ViT-B-16": ("B/16", STOCK),
}
PIECES = 500


def ours_and_theirs(name: str, image_px: int, depth: int | None = 2, **image) -> tuple[CLIP, CLIP]:
    """Our model and open_clip's of a published configuration, in full width, on the same random
    weights; image: choices in place of the case's.

    depth: blocks of either tower, None for all; the promise is about the formula of a block and of
    what is around the blocks, which more of them do not change.
    """
    preset, (image_choices, text_choices) = CASES[name]
    gelu = {"gelu": image.pop("gelu", "exact")}
    shape = PRESETS[preset]
    less = {} if depth is None else {"depth": depth}
    config = open_clip.get_model_config(name)
    tokens = config["text_cfg"]["context_length"]
    torch.manual_seed(0)
    ours = CLIP(
        ModelOptions(
            image=ImageTowerOptions(**{**shape["image"], **less, **image_choices, **gelu, **image}),
            text=TextTowerOptions(**{**shape["text"], **less, **text_choices, **gelu}),
            embed_dim=shape["embed_dim"],
        ),
        vocabulary=of_size(PIECES),
        image_px=image_px,
        text_tokens=tokens,
        explicit_attention=True,
    ).eval()
    fewer = {} if depth is None else {"layers": depth}
    text = {**config["text_cfg"], **fewer, "vocab_size": PIECES}
    theirs = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg={**config["vision_cfg"], **fewer, "image_size": image_px},
        text_cfg={n: v for n, v in text.items() if "tokenizer" not in n},
        quick_gelu=gelu["gelu"] == "quick",
    ).eval()
    with torch.no_grad():  # norms and biases too, which start at one and zero
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.load_state_dict({**as_open_clips(ours), "logit_scale": theirs.logit_scale})
    return ours, theirs


def as_open_clips(ours: CLIP) -> dict[str, Tensor]:
    """Our weights under open_clip's names: all of them, and no more than it has. A bias of the
    patch embedding is the same as a constant in every patch's position."""
    vit, text = ours.image.vit, ours.text.encoder
    positions = ours.image.positions
    if not ours.options.image.cls_position:
        positions = F.pad(positions, (0, 0, 1, 0))
    if ours.options.image.has_patch_bias:
        positions = torch.cat([positions[:1], positions[1:] + vit.patch_embed.proj.bias])
    found: dict[str, Tensor] = {
        "visual.conv1.weight": vit.patch_embed.proj.weight,
        "visual.class_embedding": vit.cls_token[0, 0],
        "visual.positional_embedding": positions,
        "visual.proj": ours.image_projection.weight.T,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": ours.text_projection.weight.T,
    }

    def put(name: str, module: nn.Module) -> None:
        found.update({f"{name}.{part}": value for part, value in module.state_dict().items()})

    if ours.options.image.pre_norm:
        put("visual.ln_pre", vit.norm_pre)
    put("visual.ln_post", vit.norm if ours.options.image.pool == "cls" else vit.fc_norm)
    put("ln_final", text.final_layer_norm)
    for i, block in enumerate(vit.blocks):
        at = f"visual.transformer.resblocks.{i}"
        put_block(put, at, block.norm1, block.norm2, block.mlp, block.attn.proj)
        found[f"{at}.attn.in_proj_weight"] = block.attn.qkv.weight
        found[f"{at}.attn.in_proj_bias"] = block.attn.qkv.bias
    for i, layer in enumerate(text.encoder.layers):
        at, attention = f"transformer.resblocks.{i}", layer.self_attn
        put_block(put, at, layer.layer_norm1, layer.layer_norm2, layer.mlp, attention.out_proj)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        found[f"{at}.attn.in_proj_weight"] = torch.cat([p.weight for p in parts])
        found[f"{at}.attn.in_proj_bias"] = torch.cat([p.bias for p in parts])
    count = sum(value.numel() for value in found.values())
    stock = ours.options.image.cls_position and not ours.options.image.has_patch_bias
    assert not stock or count == sum(p.numel() for p in ours.parameters()), (
        "not all weights are copied"
    )
    return found


def put_block(put, at: str, norm1, norm2, mlp, projection) -> None:
    for name, module in (("ln_1", norm1), ("ln_2", norm2), ("mlp.c_fc", mlp.fc1),
                         ("mlp.c_proj", mlp.fc2), ("attn.out_proj", projection)):  # fmt: skip
        put(f"{at}.{name}", module)


@torch.no_grad()
def largest_difference(ours: CLIP, theirs) -> float:
    side, tokens = ours.image.image_px, ours.text.text_tokens
    images, ids = torch.randn(2, 3, side, side), torch.randint(1, PIECES, (2, tokens))
    ids[1, tokens // 2] = PIECES - 1  # the highest, before padding
    ids[1, tokens // 2 + 1 :] = 0
    return max(
        float(
            (ours.encode_image(images) - theirs.encode_image(images, normalize=True)).abs().max()
        ),
        float((ours.encode_text(ids) - theirs.encode_text(ids, normalize=True)).abs().max()),
    )


def sizes(name: str) -> list[int]:
    """Every side from 84 to 336 px that the patch divides."""
    patch = int(CASES[name][0].split("/")[1])
    return [side for side in range(84, 337) if side % patch == 0]


def middle_sizes(name: str) -> list[int]:
    every = sizes(name)
    return sorted({every[0], every[len(every) // 2], 224})


@pytest.mark.parametrize(
    ("name", "image_px"), [(name, side) for name in CASES for side in middle_sizes(name)]
)
def test_a_tower_equals_open_clips(name, image_px):
    worst = largest_difference(*ours_and_theirs(name, image_px))
    assert worst < 1e-4, f"largest difference {worst}"


def test_quick_gelu_equals_open_clips():
    ours, theirs = ours_and_theirs("ViT-B-16", 96, gelu="quick")
    worst = largest_difference(ours, theirs)
    assert worst < 1e-4, f"largest difference {worst}"
    exact, _ = ours_and_theirs("ViT-B-16", 96)
    assert largest_difference(exact, theirs) > 1e-4  # the two formulas can be told apart


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_no_position_for_cls_and_a_patch_bias_lose_no_formula(positions):
    image = {"positions": positions, "cls_position": False, "patch_bias": True}
    worst = largest_difference(*ours_and_theirs("ViT-L-14-CLIPA", 84, **image))
    assert worst < 1e-4, f"largest difference {worst}"


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_a_tower_equals_open_clips_at_every_picture_size(name):
    for image_px in sizes(name):
        worst = largest_difference(*ours_and_theirs(name, image_px))
        assert worst < 1e-4, f"at {image_px} px: largest difference {worst}"


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_a_tower_in_full_depth_equals_open_clips(name):
    worst = largest_difference(*ours_and_theirs(name, 224, depth=None))
    assert worst < 1e-4, f"largest difference {worst}"


def test_learned_positions_are_resized_as_open_clips():
    ours, theirs = ours_and_theirs("ViT-B-16", 112)
    larger, reference = ours_and_theirs("ViT-B-16", 224)
    larger.load_state_dict(resize_weights(ours.state_dict(), larger))
    state = dict(theirs.state_dict())
    open_clip.model.resize_pos_embed(state, reference)
    reference.load_state_dict(state)
    worst = largest_difference(larger, reference)
    assert worst < 1e-6, f"largest difference {worst}"


def test_a_random_start_as_torch_is_open_clips():
    """Spread and mean of every parameter, over 4 blocks; theirs are drawn by themselves."""
    config = open_clip.get_model_config("ViT-B-16")
    vision = {**config["vision_cfg"], "layers": 2, "width": 512, "image_size": 112}
    torch.manual_seed(1)
    theirs = open_clip.CLIP(512, vision, {**config["text_cfg"], "layers": 2, "vocab_size": PIECES})
    ours = CLIP(
        ModelOptions(
            image=ImageTowerOptions(width=512, depth=2, heads=8, init="torch", **STOCK[0]),
            text=TextTowerOptions(depth=2, **STOCK[1]),
        ),
        vocabulary=of_size(PIECES),
        image_px=112,
        text_tokens=77,
        explicit_attention=True,
    )
    mine = as_open_clips(ours)
    for name, drawn in theirs.named_parameters():
        if name == "logit_scale" or (name.startswith("transformer") and name.endswith("bias")):
            continue  # text biases: zero here, PyTorch's defaults there
        a, b = mine[name].detach(), drawn.detach()
        assert a.shape == b.shape, name
        assert abs(a.std() - b.std()) <= 0.15 * b.std(), f"{name}: {a.std()} not {b.std()}"
        assert abs(a.mean() - b.mean()) <= 0.3 * b.std(), f"{name}: {a.mean()} not {b.mean()}"


def test_attention_pooling_is_one_query_over_the_patches():
    """Judged by PyTorch's attention and the formula of big_vision's MAP head."""
    shape = {"width": 64, "depth": 1, "heads": 4, "patch_px": 8, "gelu": "exact"}
    torch.manual_seed(0)
    options = ModelOptions(image=ImageTowerOptions(**shape, pool="attention"))
    kwargs = {"vocabulary": of_size(50), "image_px": 32, "text_tokens": 8}
    tower = CLIP(options, **kwargs, explicit_attention=True).image.eval()
    pool = tower.vit.attn_pool
    judge = nn.MultiheadAttention(64, 4, batch_first=True)
    tokens = torch.randn(2, 17, 64)
    with torch.no_grad():
        judge.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
        judge.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
        judge.out_proj.load_state_dict(pool.proj.state_dict())
        patches = tokens[:, 1:]
        pooled = judge(pool.latent.expand(2, -1, -1), patches, patches)[0]
        inner = F.gelu(F.linear(pool.norm(pooled), pool.mlp.fc1.weight, pool.mlp.fc1.bias))
        pooled = pooled + F.linear(inner, pool.mlp.fc2.weight, pool.mlp.fc2.bias)
        worst = float((tower.vit.forward_head(tokens, pre_logits=True) - pooled[:, 0]).abs().max())
    assert worst < 1e-5, f"largest difference {worst}"
    assert isinstance(tower.vit.norm, nn.LayerNorm) and isinstance(tower.vit.fc_norm, nn.Identity)
