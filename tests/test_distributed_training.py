"""Many ranks, every ZeRO stage and cached accumulation compute what one process computes.

The judge is one float64 process on the whole batch, compared by gradient norms too: Adam is nearly
blind to a wrong gradient scale, so that loss curves alone would hide it.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks

ROOT = Path(__file__).resolve().parents[1]
GLOBAL_BATCH, WIDTH, STEPS = 16, 24, 5


def features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(GLOBAL_BATCH, WIDTH, generator=generator)
    texts = images + 0.5 * torch.randn(GLOBAL_BATCH, WIDTH, generator=generator)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def float64_loss(images, texts, log_scale):
    logits = log_scale.exp() * images @ texts.T
    targets = torch.arange(len(images))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def loss_on_a_rank(rank: int):
    from pretrain.losses.contrastive import ContrastiveLoss, LossOptions

    world = torch.distributed.get_world_size()
    local = GLOBAL_BATCH // world
    mine = slice(rank * local, (rank + 1) * local)
    images, texts = (t[mine].clone().requires_grad_() for t in features())
    loss = ContrastiveLoss(LossOptions())
    result = loss(images, texts)
    result.loss.backward()
    # What DeepSpeed does with every parameter's gradient: the mean over ranks. A feature has one
    # owner, so its gradient is divided by the number of ranks.
    scale = loss.log_scale.grad.clone()
    torch.distributed.all_reduce(scale)
    value = result.loss.detach().clone()
    torch.distributed.all_reduce(value)
    return value / world, images.grad / world, texts.grad / world, scale / world


@pytest.mark.parametrize("world_size", [2, 4])
def test_loss_and_gradients_equal_one_float64_process(world_size):
    images, texts = (t.double().requires_grad_() for t in features())
    from pretrain.losses.contrastive import LossOptions

    log_scale = torch.tensor([LossOptions().initial_scale], dtype=torch.float64).log()
    log_scale.requires_grad_()
    expected = float64_loss(images, texts, log_scale)
    expected.backward()
    parts = run_ranks(loss_on_a_rank, world_size)
    found = {
        "image gradient": (torch.cat([p[1] for p in parts]), images.grad),
        "text gradient": (torch.cat([p[2] for p in parts]), texts.grad),
        "log scale gradient": (parts[0][3], log_scale.grad),
        "loss": (parts[0][0], expected.detach()),
    }
    for name, (ours, theirs) in found.items():
        worst = float((ours.double() - theirs).abs().max() / theirs.abs().max())
        assert worst < 1e-5, f"{name}: largest relative difference {worst}"


def small_clip():
    from pretrain.models.clip import CLIP, ModelOptions
    from pretrain.models.image_tower import ImageTowerOptions
    from pretrain.models.text_tower import TextTowerOptions

    torch.manual_seed(0)
    return CLIP(
        ModelOptions(
            image=ImageTowerOptions(width=32, depth=2, heads=2, patch_px=8),
            text=TextTowerOptions(width=32, depth=2, heads=2),
            embed_dim=16,
        ),
        vocab_size=50,
        image_px=32,
        text_tokens=6,
        explicit_attention=True,
    )


def training_batch(step: int):
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(GLOBAL_BATCH, 3, 32, 32, generator=generator)
    texts = torch.randint(1, 50, (GLOBAL_BATCH, 6), generator=generator)
    keep = torch.stack([torch.randperm(16, generator=generator)[:9].sort().values] * GLOBAL_BATCH)
    return images, texts, keep


def train_on_a_rank(rank: int, cases: list[tuple[int, int, bool, str]]):
    """{case: (losses, gradient norms, log scale, weights)} of a few steps per case."""
    from pretrain.distributed import Runtime
    from pretrain.engine.ds_config import EngineOptions
    from pretrain.engine.engine import Engine
    from pretrain.engine.optimizers import OptimizerOptions
    from pretrain.losses.contrastive import ContrastiveLoss, LossOptions

    world = torch.distributed.get_world_size()
    local = GLOBAL_BATCH // world
    runtime = Runtime(rank=rank, local_rank=rank, world_size=world, device=torch.device("cpu"))
    out = {}
    for case in cases:
        stage, chunks, recompute, kind = case
        engine = Engine(
            model=small_clip(),
            objective=ContrastiveLoss(LossOptions()),
            runtime=runtime,
            options=EngineOptions(
                ds_config=ROOT / f"ds_configs/zero{stage}.json",
                checkpoint_image=recompute,
                checkpoint_text=recompute,
            ),
            optimizer=OptimizerOptions(kind=kind, weight_decay=0.1),
            precision="fp32",
            local_batch_samples=local,
            micro_batch_samples=local // chunks,
        )
        losses, norms = [], []
        for step in range(STEPS):
            mine = slice(rank * local, (rank + 1) * local)
            images, texts, keep = (t[mine] for t in training_batch(step))
            result = engine.step(
                images, texts, keep, learning_rate=1e-3, objective_learning_rate=1e-3
            )
            losses.append(result.loss)
            norms.append(result.grad_norm)
        scale = engine.objective.figures()["logit_scale"]
        out[case] = (losses, norms, scale, engine.full_weights())
        engine.close()
    return out


def train_in_float64():
    """The same steps in one float64 process, by torch alone."""
    model = small_clip().double()
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and not _is_table(n)]
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or _is_table(n)]
    log_scale = torch.nn.Parameter(torch.tensor([1 / 0.07], dtype=torch.float64).log())
    groups = [
        dict(params=decayed, weight_decay=0.1),
        dict(params=[*plain, log_scale], weight_decay=0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
    losses, norms = [], []
    for step in range(STEPS):
        images, texts, keep = training_batch(step)
        # The model normalises its features in fp32; the judge does it in float64.
        image_features = F.normalize(
            model.image_projection(model.image(images.double(), keep)), dim=1
        )
        text_features = F.normalize(model.text_projection(model.text(texts)), dim=1)
        loss = float64_loss(image_features, text_features, log_scale)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad.reshape(-1) for p in decayed + plain if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms, float(log_scale.detach().exp()), copy.deepcopy(model.state_dict())


def _is_table(name: str) -> bool:
    return any(part in name for part in ("position", "cls_token", "token_embedding"))


CASES = [
    (1, 1, False, "adamw"), (2, 1, False, "adamw"), (3, 1, False, "adamw"),
    (1, 4, True, "adamw"), (2, 4, False, "adamw"), (3, 4, True, "adamw"),
]  # fmt: skip


def test_zero_stages_and_cached_accumulation_equal_one_float64_process():
    losses, norms, scale, weights = train_in_float64()
    for rank, found in enumerate(run_ranks(train_on_a_rank, 2, CASES)):
        for case, (our_losses, our_norms, our_scale, our_weights) in found.items():
            label = f"rank {rank}, (ZeRO stage, chunks, recompute, optimizer) {case}"
            worst = max(abs(a - b) for a, b in zip(our_losses, losses, strict=True))
            assert worst < 2e-5, f"{label}: losses differ by {worst}"
            assert abs(our_scale - scale) < 1e-4, f"{label}: logit scale {our_scale}, not {scale}"
            relative = max(abs(a / b - 1) for a, b in zip(our_norms, norms, strict=True))
            assert relative < 1e-4, f"{label}: gradient norms differ by {relative}"
            assert our_weights.keys() == weights.keys()
            # An element whose gradient is next to nothing may step either way under Adam, by at
            # most its learning rate per step: such elements are few.
            close = [(our_weights[n].double() - weights[n]).abs() < 1e-4 for n in weights]
            share = float(torch.cat([c.reshape(-1) for c in close]).double().mean())
            assert share > 0.99, f"{label}: {1 - share:.2%} of the weights differ"


def test_muon_is_the_same_in_every_zero_stage():
    found = run_ranks(train_on_a_rank, 2, [(stage, 1, False, "muon") for stage in (1, 2, 3)])[0]
    reference = found[(1, 1, False, "muon")][0]
    assert reference[-1] < reference[0] - 0.1, f"Muon does not learn: {reference}"
    for case, (losses, *_rest) in found.items():
        worst = max(abs(a - b) for a, b in zip(losses, reference, strict=True))
        # Newton-Schulz runs in fp16 where the machine has it, so sums in another order show.
        assert worst < 2e-4, f"{case}: losses differ by {worst}"


def test_a_ds_config_that_repeats_the_recipe_is_refused(tmp_path):
    from pretrain.engine.ds_config import read_ds_config

    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}))
    with pytest.raises(ValueError, match=r"gradient_clipping.*optimizer\.gradient_clip"):
        read_ds_config(path)
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    with pytest.raises(ValueError, match=r"set zero_optimization\.stage to 1, 2 or 3"):
        read_ds_config(path)
    with pytest.raises(FileNotFoundError, match="ds_configs"):
        read_ds_config(tmp_path / "none.json")
