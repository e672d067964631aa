"""FLOPs and parameters of the plan, against published figures and torch's own counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vocabularies import of_size

from pretrain.models.build import build_model
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.plan.flops import count_executed, count_parameters, forward_flops, meta_model
from pretrain.recipe.parsing import parse
from pretrain.tokens.options import TokenOptions

TINY = Path(__file__).resolve().parents[2] / "pretrain/recipes/tiny.yaml"


def towers(image, text, patch_px, embed):
    """A CLIP of (width, depth, heads, MLP) towers."""
    shapes = [dict(width=w, depth=d, heads=h, mlp_ratio=m / w) for w, d, h, m in (image, text)]
    return ModelOptions(
        image=ImageTowerOptions(**shapes[0], patch_px=patch_px),
        text=TextTowerOptions(**shapes[1]),
        embed_dim=embed,
    )


B16 = towers((768, 12, 12, 3072), (512, 12, 8, 2048), 16, 512)
L16 = towers((1024, 24, 16, 4096), (768, 12, 12, 3072), 16, 768)
L14 = towers((1024, 24, 16, 4096), (768, 12, 12, 3072), 14, 768)
H14 = towers((1280, 32, 16, 5120), (1024, 24, 16, 4096), 14, 1024)
BIGG = towers((1664, 48, 16, 8192), (1280, 32, 20, 5120), 14, 1280)


# Forward GFLOP a sample, as published: open_clip's docs/model_profile.csv (224 px, 77 text tokens),
# and reckoned from CLIPA's recipes (arXiv 2305.07017, CLIPA-v2 arXiv 2306.15658).
@pytest.mark.parametrize(
    ("model", "kept", "text_tokens", "gflop"),
    [
        (B16, 196, 77, 41.09),
        (L14, 256, 77, 175.33),
        (H14, 256, 77, 381.68),
        (BIGG, 256, 77, 1065.36),
        (B16, 49, 16, 9.86),
        (B16, 196, 16, 36.3),
        (L16, 16, 16, 13.1),
        (L16, 196, 32, 128.6),
        (L16, 36, 8, 23.9),
        (L14, 36, 8, 23.9),
        (L14, 179, 32, 117.7),
        (H14, 25, 8, 37.7),
        (H14, 36, 8, 51.7),
        (H14, 179, 32, 251.6),
        (BIGG, 36, 8, 146.8),
        (BIGG, 153, 32, 615),
    ],
)
def test_flops_agree_with_published_figures(model, kept, text_tokens, gflop):
    counted = forward_flops(model, kept=kept, text_tokens=text_tokens).forward
    assert counted / 1e9 == pytest.approx(gflop, rel=0.01)


def test_flops_of_a_tiny_model_by_hand():
    model = towers((8, 1, 2, 16), (4, 2, 2, 8), 2, 3)
    found = forward_flops(model, kept=2, text_tokens=5)
    # 3 tokens x (4 x 64 + 2 x 8 x 16 + 2 x 3 x 8) + 2 patches of 12 numbers x 8 + 8 x 3
    assert found.image == 2 * (3 * (256 + 256 + 48) + 2 * 12 * 8 + 8 * 3)
    assert found.text == 2 * (2 * 5 * (64 + 64 + 40) + 4 * 3)
    assert found.executed(two_passes=False) == 3 * (found.image + found.text)
    assert found.executed(recompute_image=True, two_passes=True) == (
        5 * found.image + 4 * found.text
    )


@pytest.mark.parametrize(
    ("image", "text", "space"),
    [
        ({}, {}, {}),
        ({}, {"causal": True, "pool": "eos", "specials": "bos_eos"}, {}),
        ({"cls_token": False}, {"padding_mask": True, "pool": "mean"}, {}),
        ({"pool": "attention", "cls_token": False}, {}, {"text_projection_bias": True}),
        ({"pool": "attention", "mlp_ratio": 2.5}, {"mlp_ratio": 3.3}, {}),
        ({"pool": "attention"}, {}, {"image_projection": False, "embed_dim": 64}),
        ({"pool": "gap_cls", "pre_norm": True, "positions": "learned"}, {"pool": "mean"}, {}),
        ({"pool": "cls", "positions": "learned", "cls_position": True}, {}, {}),
    ],
)
def test_flops_and_parameters_are_those_of_the_real_towers(image, text, space):
    model = ModelOptions(
        image=ImageTowerOptions(**{**dict(width=64, depth=3, heads=2, patch_px=8), **image}),
        text=TextTowerOptions(**{**dict(width=48, depth=2, heads=2), **text}),
        **{"embed_dim": 32, **space},
    )
    tokens = TokenOptions(image_px=64, text_tokens=12)
    real = build_model(model, tokens=tokens, vocabulary=of_size(100), device=torch.device("cpu"))
    real.requires_grad_(False)  # torch's counter does not take a learned query otherwise
    kept = torch.arange(20)[None].expand(2, -1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        real(torch.zeros(2, 3, 64, 64), torch.ones(2, 12, dtype=torch.int64), kept)
    counted = forward_flops(model, kept=20, text_tokens=12).forward
    assert counted == counter.get_total_flops() / 2
    by_tower = count_parameters(meta_model(model, tokens, 100))
    assert sum(by_tower.values()) == sum(p.numel() for p in real.parameters())
    assert by_tower["text"] == sum(
        p.numel() for name, p in real.named_parameters() if name.startswith("text")
    )


@pytest.mark.parametrize("locked", [None, "image", "text"])
def test_a_caption_classifier_costs_what_torch_counts_of_it(locked):
    words = ["--config", str(TINY), *(["--stages.full.locked", locked] if locked else [])]
    vocab = 1000
    executed, counted, parameters = [], [], []
    for more in ([], ["--loss.classification_weight", "1"]):
        recipe, _ = parse([*words, *more])
        stage = recipe.stages["full"]
        executed.append(count_executed(recipe, stage, 1, vocab))
        model = meta_model(recipe.model, stage.tokens, vocab, classifies=bool(more))
        if locked:
            model.get_submodule(locked).requires_grad_(False)
        images, ids = (torch.zeros(shape, device="meta") for shape in ((2, 3, 48, 48), (2, 12)))
        with FlopCounterMode(display=False) as counter:
            sum(part.sum() for part in model(images, ids.long())).backward()
        counted.append(counter.get_total_flops() / 2)
        parameters.append(sum(count_parameters(model).values()))
    assert executed[1] - executed[0] == counted[1] - counted[0] > 0
    width = recipe.model.image.width
    assert parameters[1] - parameters[0] == width * vocab + vocab + 2 * width
