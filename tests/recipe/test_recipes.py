"""Every number of every published recipe, against tables typed from the publications."""

from pathlib import Path

import pytest

from pretrain.losses.options import SigmoidOptions
from pretrain.recipe.parsing import parse
from pretrain.recipe.recipe import Recipe, check_ranks, image_tokens
from pretrain.recipe.stages import Stage, StageOptions, plan_stages

RECIPES = Path(__file__).resolve().parents[2] / "pretrain/recipes"
OURS = {"b16_cabs", "b16_long", "demo", "own", "tiny"}

# Typed from the sources, a line each; none of it is computed from a recipe.
# Samples in millions as printed (6 epochs of LAION-400M, 195,490 steps of 65,536, 131.07 M, ...),
# global batch, peak learning rate, warmup steps, picture side, kept patch tokens, text tokens.
LAION_400M, DATACOMP_1B, DFN = 407_000_000, 1_280_000_000, 130_000_000
V2_224_336 = {
    # clipa_jax/configs/model_h/unmask_tuning_224_scheduleX4.py: 4 x 131,072,000, mask 0.3
    "tune_224": (524.3, 32_768, 5.12e-5, 800, 224, 179, 32),
    # clipa_jax/configs/model_h/unmask_tuning_336_scheduleX1.py: mask 0.4
    "tune_336": (131.07, 16_384, 6.4e-6, 1_600, 336, 345, 32),
}
STAGES = {
    "b16_i50t16": {  # clipa_torch/scripts/exp/gpu/vit_b16/i50_t16_pretrain.sh, _finetune.sh
        "pretrain": (2_440, 65_536, 2.048e-3, 782, 112, 49, 16),
        "tune_224": (131.07, 8_192, 2.56e-5, 3_072, 224, 196, 16),
    },
    "l16_i17t16": {  # .../vit_l16/i17_t16_*.sh
        "pretrain": (2_440, 32_768, 1.024e-3, 1_563, 64, 16, 16),
        "tune_224": (131.07, 7_168, 2.24e-5, 3_571, 224, 196, 16),
    },
    "l16_i37t8": {  # .../vit_l16/i37_t8_*.sh
        "pretrain": (2_440, 32_768, 1.024e-3, 1_563, 96, 36, 8),
        "tune_224": (131.07, 7_168, 2.24e-5, 3_571, 224, 196, 32),
    },
    # L/14: as H/14, none is released; clipa_jax/configs/model_h/84_8_pre_training.py
    "l14_84px": {"pretrain": (12_811.6, 65_536, 2.048e-3, 3_200, 84, 36, 8), **V2_224_336},
    # clipa_jax/configs/model_h/70_8_pre_training.py
    "h14_70px": {"pretrain": (12_811.6, 65_536, 2.048e-3, 3_200, 70, 25, 8), **V2_224_336},
    # clipa_jax/configs/model_h/84_8_pre_training.py
    "h14_84px": {"pretrain": (12_811.6, 65_536, 2.048e-3, 3_200, 84, 36, 8), **V2_224_336},
    "bigg14_84px": {  # t5x branch, clipa_jax/configs/model_bigG: mask 0.4 in both stages
        "pretrain": (12_811.6, 65_536, 1.024e-3, 3_200, 84, 36, 8),
        "tune_224": (524.3, 16_384, 2.56e-5, 0, 224, 153, 32),
        "tune_336": (131.07, 16_384, 6.4e-6, 1_600, 336, 345, 32),
    },
    "l16_flip": {  # arXiv 2305.07017's ablation: 6.4 epochs, 75 % masked; model_l/*.py
        "pretrain": (2_560, 32_768, 1.024e-3, 1_600, 224, 49, 32),
        "tune_224": (131.07, 32_768, 1.024e-4, 800, 224, 196, 32),
    },
    "b16_dynamics": {  # MingliangLiang3/DynamiCS, scripts/dynamics_b16_pretrain.sh, _finetune.sh
        "pretrain": (1_280, 28_000, 8.75e-4, 1_600, 112, 49, 32),
        "tune_224": (128, 8_000, 1.25e-5, 1_600, 224, 196, 32),
    },
    "b16_siglip": {  # arXiv 2303.15343: batch; big_vision's siglip_lit_coco.py: 1e-3, 3 % of steps
        "pretrain": (2_560, 32_768, 1e-3, 2_344, 112, 49, 16),
        "tune_224": (131.07, 32_768, 1e-4, 120, 224, 196, 32),
    },
    # hustvl/SuperCLIP, superclip_vit_b16_s512m_bs16k.yaml
    "b16_superclip": {"pretrain": (512, 16_384, 1e-3, 500, 224, 196, 77)},
    "l14_pe": {  # sizes of arXiv 2504.13181; lengths and rates are this project's own
        "px_98": (1_280, 65_536, 2.048e-3, 3_200, 98, 49, 16),
        "px_154": (512, 32_768, 5.12e-4, 800, 154, 121, 32),
        "px_224": (256, 32_768, 5.12e-5, 800, 224, 256, 32),
    },
}
# Width, depth, heads and MLP of the image tower, then of the text tower; patch; shared width.
B, L = ((768, 12, 12, 3072), (512, 12, 8, 2048)), ((1024, 24, 16, 4096), (768, 12, 12, 3072))
H = ((1280, 32, 16, 5120), (1024, 24, 16, 4096))
BIGG = ((1664, 48, 16, 8192), (1280, 32, 20, 5120))
# clipa_torch's towers (v1), JAX's (v2); pooling; text attention and pooled place, GELU, pixels, eps
V1 = (True, "eos", "bos_eos", True, "exact", "openai", 1e-6)
V2 = (False, "last", "bos", False, "tanh", "imagenet", 1e-8)
# Towers, patch, shared width, image pooling, positions, choices, jitter, recomputation, dataset.
MODELS = {
    "b16_i50t16": (B, 16, 512, "cls", "learned_from_sincos", V1, False, True, LAION_400M),
    "l16_i17t16": (L, 16, 768, "gap_cls", "learned_from_sincos", V1, True, True, LAION_400M),
    "l16_i37t8": (L, 16, 768, "gap_cls", "learned_from_sincos", V1, True, True, LAION_400M),
    "l14_84px": (L, 14, 768, "gap", "sincos_jax", V2, True, True, DATACOMP_1B),
    "h14_70px": (H, 14, 1024, "gap", "sincos_jax", V2, True, True, DATACOMP_1B),
    "h14_84px": (H, 14, 1024, "gap", "sincos_jax", V2, True, True, DATACOMP_1B),
    "bigg14_84px": (BIGG, 14, 1280, "gap", "sincos_jax", V2, True, True, DATACOMP_1B),
    "l16_flip": (L, 16, 768, "cls", "sincos_jax", V2, False, False, LAION_400M),
    "b16_dynamics": (B, 16, 512, "cls", "learned", V1, False, False, DFN),
    "b16_siglip": (B, 16, 512, "attention", "learned", V2, False, False, LAION_400M),
    "b16_superclip": (B, 16, 512, "cls", "learned", V1, False, True, DATACOMP_1B),
    "l14_pe": (L, 14, 768, "gap", "sincos_jax", V2, True, True, DATACOMP_1B),
}
# What clipa_jax trained, or what takes its numbers; of these its L and larger with bf16 moments.
JAX = {"l14_84px", "h14_70px", "h14_84px", "bigg14_84px", "l16_flip", "l14_pe"}
SYNTAX = {"l16_i17t16", "l16_i37t8", "l14_84px", "h14_70px", "h14_84px", "bigg14_84px", "l14_pe"}


def read(name: str) -> Recipe:
    needed = ["--data.train", "data/mine/train", "--run_dir", "runs/mine"]
    return parse(["--config", str(RECIPES / f"{name}.yaml"), *needed])[0]


def shape(tower) -> tuple[int, int, int, int]:
    return tower.width, tower.depth, tower.heads, int(tower.width * tower.mlp_ratio)


def test_the_tables_hold_every_published_recipe():
    files = {path.stem for path in RECIPES.glob("*.yaml")} - OURS
    assert files == set(STAGES) == set(MODELS)


@pytest.mark.parametrize("name", STAGES)
def test_the_stages_are_the_published_ones(name):
    recipe, size = read(name), MODELS[name][-1]
    stages = plan_stages(recipe.stages, size)
    assert [stage.name for stage in stages] == list(STAGES[name])
    for stage in stages:
        millions, batch, peak, warmup, image_px, kept, text_tokens = STAGES[name][stage.name]
        options = stage.options
        assert options.samples is not None
        # As printed, and what is trained is that, rounded up to one whole step.
        assert abs(options.samples / 1e6 - millions) <= 0.0002 * millions, stage.name
        assert 0 <= stage.samples - options.samples < batch, stage.name
        assert options.global_batch_samples == batch, stage.name
        assert stage.peak() == pytest.approx(peak, rel=1e-9), stage.name
        check_warmup(stage, warmup, from_zero=name in JAX)
        assert stage.warmup_steps == warmup, stage.name
        assert options.tokens.image_px == image_px, stage.name
        assert image_tokens(recipe, options)[0] == kept, stage.name
        assert options.tokens.text_tokens == text_tokens, stage.name
        check_reduction(name, stage.name, options)
        tier = options.tier or recipe.data.tier
        wanted = "160" if image_px <= 160 else "320" if image_px <= 320 else "full"
        assert tier == wanted, stage.name  # the smallest that has the pixels


def check_warmup(stage: Stage, warmup: int, *, from_zero: bool) -> None:
    """clipa_torch's cosine_lr: (step + 1) / warmup; CLIPA JAX's: min(1, step / warmup)."""
    for step in {0, warmup // 2, warmup} if warmup else ():
        done = min((step if from_zero else step + 1) / warmup, 1.0)
        assert stage.schedule(step) == pytest.approx(done), step
    assert stage.schedule(warmup) == pytest.approx(1.0)


def check_reduction(name: str, stage: str, options: StageOptions) -> None:
    """Crop, jitter and the kinds of reduction of one stage."""
    first = stage == next(iter(STAGES[name]))
    syntax, torch = first and name in SYNTAX, MODELS[name][5] is V1
    assert options.tokens.text_reduction == ("syntax" if syntax else "truncate"), stage
    assert options.tokens.syntax_unit == ("word" if syntax and torch else "token"), stage
    # --pos-embed sin_cos_2d to pretrain, learnable to tune.
    learns = MODELS[name][4] == "learned_from_sincos"
    assert options.fixed_positions == (first and learns), stage
    masked = STAGES[name][stage][5] in (49, 153, 179, 345) and options.tokens.image_px >= 224
    assert options.tokens.image_reduction == ("random" if masked else "none"), stage
    crop, augment = options.crop, options.augment
    area_min = 0.9 if name == "b16_superclip" else 0.4  # open_clip's default
    assert (crop.area_min, crop.area_max, crop.aspect_max) == (area_min, 1.0, 4 / 3), stage
    # JAX: inception_crop(method="bilinear"); clipa_torch: InterpolationMode.BICUBIC.
    assert crop.interpolation == ("bilinear" if name in JAX else "bicubic"), stage
    jitter = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    assert jitter == ((0.32, 0.32, 0.32, 0.08) if MODELS[name][6] else (0, 0, 0, 0)), stage
    chances = (augment.jitter, augment.grey)
    assert chances == ((0.8, 0.2) if MODELS[name][6] else (1.0, 0.0)), stage
    assert (augment.flip, augment.moves, augment.channel) == (0, False, 0), stage


@pytest.mark.parametrize("name", MODELS)
def test_the_model_and_the_optimizer_are_the_published_ones(name):
    towers, patch_px, embed_dim, pool, positions, choices, _, recomputes, _ = MODELS[name]
    recipe = read(name)
    image, text, optimizer = recipe.model.image, recipe.model.text, recipe.optimizer
    assert (shape(image), shape(text)) == towers
    assert (image.patch_px, recipe.model.embed_dim) == (patch_px, embed_dim)
    assert (image.pool, image.positions) == (pool, positions)
    found = (text.causal, text.pool, text.specials, image.pre_norm, image.gelu)
    assert (*found, recipe.data.normalisation, optimizer.eps) == choices
    assert (text.gelu, text.padding_mask) == (image.gelu, False)
    assert image.init == ("torch" if choices is V1 else "xavier")
    is_superclip = name == "b16_superclip"
    assert recipe.loss.classification_weight == (1.0 if is_superclip else None)
    assert image.cls_position == (is_superclip or name == "b16_dynamics")
    beta2 = 0.98 if is_superclip else 0.95
    assert (optimizer.kind, optimizer.beta1, optimizer.beta2) == ("adamw", 0.9, beta2)
    decay_and_clip = (optimizer.weight_decay, optimizer.gradient_clip)
    if name == "b16_siglip":
        assert decay_and_clip == (1e-4, 1.0) and recipe.loss.kind == "sigmoid"
        assert recipe.loss.sigmoid == SigmoidOptions(initial_scale=10, initial_bias=-10)
    else:
        assert decay_and_clip == (0.2, None) and recipe.loss.kind == "softmax"
    softmax = recipe.loss.softmax
    assert softmax.initial_scale == pytest.approx(1 / 0.07)
    assert softmax.max_scale == (None if name in JAX else 100)
    # clipa_torch decays all of two dimensions and more, JAX `*/kernel`.
    assert optimizer.decay_tables == (choices is V1)
    bf16 = name in JAX and name != "l16_flip"  # mu_dtype of model_h/*.py
    assert optimizer.first_moment == ("bf16" if bf16 else "fp32")
    assert image.norm_eps == text.norm_eps == (1e-5 if choices is V1 else 1e-6)  # torch's, flax's
    assert (recipe.engine.checkpoint_image, recipe.engine.checkpoint_text) == (recomputes,) * 2


@pytest.mark.parametrize("name", STAGES)
def test_the_batches_divide_over_servers(name):
    recipe = read(name)
    check_ranks(recipe, 8)
    if name != "b16_dynamics":
        check_ranks(recipe, 64)
        return
    check_ranks(recipe, 32)
    with pytest.raises(ValueError, match="28000 is not divisible by the 64 ranks"):
        check_ranks(recipe, 64)  # its published batch is 8 x 3,500


@pytest.mark.parametrize("name", STAGES)
def test_a_recipe_says_where_it_comes_from_and_what_it_cost(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "not yet" not in head
    assert "arXiv" in head and f"pretrain/recipes/{name}.yaml" in head
    assert "-hours" in head or "ost: not published" in head
