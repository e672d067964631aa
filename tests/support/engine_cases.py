"""A small CLIP trained by the engine, case by case, and its judge: one float64 process by torch
alone, with AdamW or with Muon's rule written out."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from caption_classes import add_classes, dense_loss
from muon_rule import MuonRule
from torch import Tensor
from vocabularies import of_size

ROOT = Path(__file__).resolve().parents[2]
GLOBAL_BATCH, STEPS = 16, 5
WEIGHT_DECAY, MUON_LR_SCALE, MUON_MOMENTUM = 0.1, 4.0, 0.95


@dataclass(frozen=True, kw_only=True)
class Case:
    """What varies from one engine to the next."""

    zero: str = "1"  # ds_configs/zero{zero}.json
    kind: str = "adamw"
    precision: str = "fp32"
    chunks: int = 1
    recompute: bool = False
    every: int = 1
    compile: bool = False
    memory_budget: float | None = None
    reduce_dtype: str = "bf16"
    gradient_clip: float | None = None
    eps: float = 1e-6
    learning_rate: float = 1e-3
    layer_decay: float | None = None
    locked: str | None = None
    first_moment: str = "fp32"
    ema: float | None = None
    classification: float | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a case, or the judge, made of the steps."""

    losses: list[float]
    norms: list[float]
    logit_scale: float
    weights: dict[str, Tensor]


def device() -> torch.device:
    """Of this rank: a GPU where there is one and tests do not ask for the CPU."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def small_clip(explicit_attention: bool = True, *, classifies: bool = False) -> Any:
    from pretrain.models.clip import CLIP
    from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions

    torch.manual_seed(0)
    model = CLIP(
        ModelOptions(
            image=ImageTowerOptions(width=32, depth=2, heads=2, patch_px=8),
            text=TextTowerOptions(width=32, depth=2, heads=2),
            embed_dim=16,
        ),
        vocabulary=of_size(50),
        image_px=32,
        text_tokens=6,
        explicit_attention=explicit_attention,
    )
    if classifies:
        add_classes(model)
    return model


def training_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(GLOBAL_BATCH, 3, 32, 32, generator=generator)
    texts = torch.randint(1, 50, (GLOBAL_BATCH, 6), generator=generator)
    keep = torch.stack([torch.randperm(16, generator=generator)[:9].sort().values] * GLOBAL_BATCH)
    return images, texts, keep


def build_engine(case: Case, *, disturb: bool = False) -> Any:
    """The engine of a case on this rank; disturb: with other weights than `small_clip`'s."""
    from pretrain.base.distributed import Runtime
    from pretrain.engine.engine import Engine
    from pretrain.engine.options import EngineOptions, OptimizerOptions
    from pretrain.losses.build import build_objective
    from pretrain.losses.options import LossOptions

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    local = GLOBAL_BATCH // world
    place = device()
    classifies = case.classification is not None
    model = small_clip(place.type == "cpu", classifies=classifies).to(place)
    if disturb:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
    return Engine(
        model=model,
        objective=build_objective(LossOptions(classification_weight=case.classification)),
        runtime=Runtime(rank=rank, local_rank=rank, world_size=world, device=place),
        options=EngineOptions(
            ds_config=ROOT / f"ds_configs/zero{case.zero}.json",
            checkpoint_image=case.recompute,
            checkpoint_text=case.recompute,
            checkpoint_every=case.every,
            compile=case.compile,
            activation_memory_budget=case.memory_budget,
            reduce_dtype=case.reduce_dtype,
            ema=case.ema,
        ),
        optimizer=OptimizerOptions(
            kind=case.kind,
            weight_decay=WEIGHT_DECAY,
            eps=case.eps,
            gradient_clip=case.gradient_clip,
            first_moment=case.first_moment,
            muon_lr_scale=MUON_LR_SCALE,
            muon_momentum=MUON_MOMENTUM,
        ),
        precision=case.precision,
        local_batch_samples=local,
        micro_batch_samples=local // case.chunks,
        layer_decay=case.layer_decay,
        locked=case.locked,
    )


def build_saver(engine: Any, folder: Path, **options: Any) -> Any:
    """What writes an engine's checkpoints into a folder, without a log."""
    from pretrain.recipe.run_options import CheckpointOptions
    from pretrain.run.metrics import RunLog
    from pretrain.run.saver import Saver

    log = RunLog(folder, is_main=False, samples=0, samples_seen=0)
    return Saver(folder, CheckpointOptions(**options), engine.runtime, log)


def save_whole(engine: Any, folder: Path, state: Any) -> None:
    """A checkpoint, whole when this returns; all others in the folder are kept."""
    saver = build_saver(engine, folder, keep=99)
    saver.save(engine, state, {})
    saver.finish()


def one_step(engine: Any, case: Case, batch: int, *, poison_images: bool = False) -> Any:
    """The engine's step on this rank's part of a batch; with NaN among its pictures if asked."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    local = GLOBAL_BATCH // world
    images, texts, keep = (t[rank * local : (rank + 1) * local] for t in training_batch(batch))
    if poison_images:
        images = images.clone()
        images[-1, 0, 0] = torch.nan
    place = engine.runtime.device
    return engine.step(
        images.to(place, engine.dtype),
        texts.to(place),
        keep.to(place),
        learning_rate=case.learning_rate,
        objective_learning_rate=case.learning_rate,
        measure=True,
    )


def training(engine: Any, case: Case, batches: Iterable[int]) -> Training:
    """What the engine makes of these batches."""
    results = [one_step(engine, case, batch) for batch in batches]
    assert not any(result.skipped for result in results), results
    return Training(
        losses=[result.loss for result in results],
        norms=[result.grad_norm for result in results],
        logit_scale=engine.objective.figures()["logit_scale"],
        weights=engine.full_weights(),
    )


def train_on_a_rank(rank: int, cases: list[Case]) -> dict[Case, Training]:
    """A few steps of every case."""
    found = {}
    for case in cases:
        engine = build_engine(case)
        zero = engine.engine.optimizer
        offloaded = getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False)
        assert bool(offloaded) == case.zero.endswith("offload"), f"{case}: offload {offloaded}"
        found[case] = training(engine, case, range(STEPS))
        engine.close()
    return found


def float64_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * images @ texts.T
    targets = torch.arange(len(images))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _is_table(name: str) -> bool:
    return any(part in name for part in ("position", "cls_token", "token_embedding"))


def layers_below_top(name: str) -> int:
    """Of a parameter of `small_clip`, whose towers have two blocks."""
    if "blocks.1." in name or "layers.1." in name:
        return 1
    if "blocks.0." in name or "layers.0." in name:
        return 2
    return 3 if any(p in name for p in ("embed", "cls_token", "image.positions")) else 0


def train_in_float64(case: Case) -> Training:
    """The same steps in one float64 process."""
    model = small_clip(classifies=case.classification is not None).double()
    log_scale = torch.nn.Parameter(torch.tensor([1 / 0.07], dtype=torch.float64).log())
    muon: list[Tensor] = []
    groups: list[dict[str, Any]] = [dict(params=[log_scale], weight_decay=0)]
    for name, parameter in model.named_parameters():
        if case.kind == "muon" and parameter.ndim == 2 and ("blocks" in name or "layers" in name):
            assert case.layer_decay is None and case.locked is None
            muon.append(parameter)
        else:
            decays = parameter.ndim >= 2 and not _is_table(name)
            rate = case.learning_rate * (case.layer_decay or 1.0) ** layers_below_top(name)
            decay = WEIGHT_DECAY if decays else 0
            groups.append(dict(params=[parameter], weight_decay=decay, lr=rate))
    adam = torch.optim.AdamW(groups, lr=case.learning_rate, betas=(0.9, 0.95), eps=case.eps)
    muon_lr = case.learning_rate * MUON_LR_SCALE
    muon_rule = MuonRule(muon, lr=muon_lr, momentum=MUON_MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for step in range(STEPS):
        images, texts, keep = training_batch(step)
        # The model normalises its features in fp32; the judge does it in float64.
        pooled = model.image(images.double(), keep)
        image_features = F.normalize(model.image_projection(pooled), dim=1)
        text_features = F.normalize(model.text_projection(model.text(texts)), dim=1)
        loss = float64_loss(image_features, text_features, log_scale)
        if case.classification is not None:
            loss = loss + case.classification * dense_loss(model.classifier, pooled, texts)
        model.zero_grad()
        log_scale.grad = None
        loss.backward()
        for name, parameter in model.named_parameters():
            if case.locked is not None and name.startswith(f"{case.locked}."):
                parameter.grad = None  # for AdamW the parameter is not there
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.reshape(-1) for g in gradients]).norm()))
        if case.gradient_clip is not None:
            for gradient in gradients:
                gradient *= min(1.0, case.gradient_clip / norms[-1])
        adam.step()
        for moments in adam.state.values() if case.first_moment == "bf16" else ():
            moments["exp_avg"] = moments["exp_avg"].bfloat16().double()
        muon_rule.step()
        losses.append(float(loss.detach()))
    return Training(
        losses=losses,
        norms=norms,
        logit_scale=float(log_scale.detach().exp()),
        weights={name: weight.clone() for name, weight in model.state_dict().items()},
    )


def largest(ours: list[float], theirs: list[float], *, relative: bool = False) -> float:
    return max(abs(a - b) / (b if relative else 1) for a, b in zip(ours, theirs, strict=True))


def error_of_the_move(ours: Training, theirs: Training) -> float:
    """How far the weights are from the judge's, over how far they have moved in all."""
    start = small_clip(classifies="classifier.linear.weight" in theirs.weights).state_dict()

    def norm(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        parts = [(one[n].double() - other[n].double()).reshape(-1) for n in one]
        return float(torch.cat(parts).norm())

    assert ours.weights.keys() == theirs.weights.keys()
    return norm(ours.weights, theirs.weights) / norm(theirs.weights, start)
