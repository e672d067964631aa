"""What each stage of a recipe takes on a machine: FLOPs, memory, time, pictures, communication."""

import math
from dataclasses import dataclass, replace

import torch

from pretrain.engine.ds_config import read_ds_config
from pretrain.engine.options import TrainedIn
from pretrain.engine.precision import resolve_precision
from pretrain.plan import communication
from pretrain.plan.flops import (
    Flops,
    count_executed,
    count_parameters,
    loss_flops,
    meta_model,
    stage_flops,
)
from pretrain.plan.hardware import GIB, Machine
from pretrain.plan.memory import (
    Memory,
    ZeroLayout,
    batch_bytes,
    moment_bytes,
    packed_bytes,
    sample_bytes,
    states,
    temporary_bytes,
)
from pretrain.recipe.recipe import Recipe, check_ranks, image_tokens
from pretrain.recipe.stages import Stage, StageOptions

# Of a GPU's memory: the CUDA context, cuBLAS, NCCL (assumed), and what the allocator cannot use.
_CONTEXT_GIB, USABLE = 1.5, 0.92
# On a CPU: what torch, oneDNN and DeepSpeed take at their first step (what a measured run of
# a million parameters took beyond the other parts).
_CPU_CONTEXT_GIB = 0.06
# Numbers of a text that the ranks agree on: its highest logit; softmax also sums its exponentials
# and tells its own logit.
_AGREED = {"softmax": 3, "sigmoid": 1}
# Pictures a second that one core reads, decodes, crops and collates, measured with this loader on
# photographs on one AMD EPYC core (Zen 5 class), by the picture's side and the side of its tier.
_LOADER_RATES = ((80, 4670.0), (128, 3672.0))
_LOADER_RATE_224, _LOADER_RATE_224_FULL = 1293.0, 278.0  # from a 320 px tier; from originals
# Bytes a picture, JPEG q90, by the tier's shorter side (3,000 photographs of 0.2 MP); its ustar
# members' headers and padding (5 x 768) and its row of the index beside them.
_TIER_BYTES = {128: 6_200, 160: 9_000, 256: 19_900}
_ORIGINAL_BYTES, _SAMPLE_OVERHEAD_BYTES = 42_100, 5 * 768 + 100


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage on a machine."""

    name: str
    samples: int
    parameters: dict[str, int]  # by tower
    kept_tokens: int
    cls_tokens: int
    full_tokens: int
    text_tokens: int
    flops: Flops
    executed_flops: float  # of one sample in training
    precision: TrainedIn
    zero_stage: int
    memory: Memory
    micro: int
    local: int
    largest_micro: dict[int, int | None]  # by ZeRO stage
    sent: dict[str, int]  # bytes a rank sends in a step
    step_s: float
    sent_s: float
    loader_images_per_s: float  # of one core
    tier: str

    @property
    def images_per_s(self) -> float:
        """Of all ranks."""
        return self.local * self.ranks / self.step_s

    ranks: int

    @property
    def hours(self) -> float:
        return self.samples / self.images_per_s / 3600

    @property
    def loader_cores(self) -> int:
        return math.ceil(self.images_per_s / self.loader_images_per_s)

    @property
    def memory_gib(self) -> float:
        return self.memory.total(self.micro) / GIB


def loader_rate(image_px: int, tier: str) -> float:
    """Pictures a second that one core delivers."""
    for side, rate in _LOADER_RATES:
        if image_px <= side and tier != "full":
            return rate
    return _LOADER_RATE_224 if tier != "full" else _LOADER_RATE_224_FULL


def tier_bytes(tier: str) -> int:
    """Bytes of one sample on disk in a tier named by its shorter side, or of an original."""
    if not tier.isdigit():
        return _ORIGINAL_BYTES + _SAMPLE_OVERHEAD_BYTES
    side = int(tier)
    nearest = min(_TIER_BYTES, key=lambda known: abs(math.log(known / max(side, 1))))
    # Between 128 and 256 px bytes grow with the side to the power of 1.7.
    picture = _TIER_BYTES[nearest] * (side / nearest) ** 1.7
    return round(min(picture, _ORIGINAL_BYTES)) + _SAMPLE_OVERHEAD_BYTES


def disk_bytes(estimates: list[StageEstimate], samples: int) -> dict[str, int]:
    """By each tier that the stages read."""
    return {e.tier: samples * tier_bytes(e.tier) for e in estimates}


def stage_estimate(
    recipe: Recipe, stage: Stage, machine: Machine, *, vocab_size: int
) -> StageEstimate:
    """A stage of a recipe on a machine. ValueError where its batch does not divide."""
    options = stage.options
    check_ranks(recipe, machine.ranks)
    kept, full = image_tokens(recipe, options)
    classifies = recipe.loss.classification_weight is not None
    model = meta_model(recipe.model, options.tokens, vocab_size, classifies=classifies)
    if options.locked is not None:
        model.get_submodule(options.locked).requires_grad_(False)
    parameters = count_parameters(model)
    total = sum(parameters.values())
    locked = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    layout = ZeroLayout.of(read_ds_config(recipe.engine.ds_config))
    precision = _precision(recipe, machine)
    weight_bytes = 2 if precision == "bf16" else 4
    local = options.global_batch_samples // machine.ranks
    micro = options.micro_batch_samples or local
    flops = stage_flops(recipe, options, vocab_size)
    executed = count_executed(recipe, options, machine.ranks, vocab_size)
    sent = communication.step_bytes(
        layout,
        parameters=total,
        weight_bytes=weight_bytes,
        gradient_bytes=2 if precision == "bf16" and recipe.engine.reduce_dtype == "bf16" else 4,
        embed_dim=recipe.model.embed_dim,
        agreed=_AGREED[recipe.loss.kind],
        global_batch=options.global_batch_samples,
        ranks=machine.ranks,
        passes=local // micro,
        locked=locked,
    )
    sent_s = communication.seconds(sent, machine.links, nodes=machine.nodes)
    of_loss = loss_flops(recipe.model.embed_dim, options.global_batch_samples)
    hardware = machine.hardware
    computed_s = local * (
        executed / hardware.tflops(precision) + of_loss / hardware.loss_tflops(precision)
    )
    moments = moment_bytes(model, recipe.optimizer)
    memories = {
        zero: _memory(
            recipe,
            options,
            machine,
            replace(layout, stage=zero),
            parameters=total,
            locked=locked,
            moments=moments,
            temporary=temporary_bytes(model, recipe.optimizer, machine.ranks),
            weight_bytes=weight_bytes,
            classes=vocab_size if classifies else 0,
        )
        for zero in (1, 2, 3)
    }
    room = round(USABLE * machine.hardware.memory_gib * GIB)
    tier = options.tier or recipe.data.tier
    return StageEstimate(
        name=stage.name,
        samples=stage.samples,
        parameters=parameters,
        kept_tokens=kept,
        cls_tokens=int(recipe.model.image.cls_token),
        full_tokens=full,
        text_tokens=options.tokens.text_tokens,
        flops=flops,
        executed_flops=executed,
        precision=precision,
        zero_stage=layout.stage,
        memory=memories[layout.stage],
        micro=micro,
        local=local,
        ranks=machine.ranks,
        largest_micro={z: memory.largest_micro(room, local) for z, memory in memories.items()},
        sent=sent,
        sent_s=sent_s,
        step_s=computed_s / (1e12 * machine.hfu) + sent_s,
        loader_images_per_s=loader_rate(options.tokens.image_px, tier),
        tier=tier,
    )


def _precision(recipe: Recipe, machine: Machine) -> TrainedIn:
    if machine.is_cpu or recipe.engine.precision != "auto":
        return resolve_precision(recipe.engine.precision, torch.device("cpu"))
    return "bf16"  # every GPU that is listed computes in it


def _memory(
    recipe: Recipe,
    stage: StageOptions,
    machine: Machine,
    layout: ZeroLayout,
    *,
    parameters: int,
    locked: int,
    moments: int,
    temporary: int,
    weight_bytes: int,
    classes: int,
) -> Memory:
    kept, _ = image_tokens(recipe, stage)
    fixed, host = states(
        layout,
        parameters=parameters,
        moments=moments,
        ranks=machine.ranks,
        weight_bytes=weight_bytes,
        locked=locked,
        averages=recipe.engine.ema is not None,
    )
    if machine.is_cpu:
        # A CPU's memory is taken when it is touched, of a bucket only what is used.
        fixed["buckets"] = min(fixed["buckets"], weight_bytes * (parameters - locked))
        # Its host memory is its own.
        fixed |= {"locked tower's copy": 4 * locked} if locked else {}
    fixed |= {"optimizer's temporaries": temporary} if temporary else {}
    fixed["context"] = round((_CPU_CONTEXT_GIB if machine.is_cpu else _CONTEXT_GIB) * GIB)
    fixed |= batch_bytes(
        recipe.model,
        local=stage.global_batch_samples // machine.ranks,
        global_batch=stage.global_batch_samples,
        image_px=stage.tokens.image_px,
        weight_bytes=weight_bytes,
    )
    every = recipe.engine.checkpoint_every
    recompute_image = every if recipe.engine.checkpoint_image else None
    recompute_text = every if recipe.engine.checkpoint_text else None
    if stage.locked != "text":
        fixed["text's packed weights"] = packed_bytes(
            recipe.model.text, weight_bytes=weight_bytes, recompute=recompute_text
        )
    per_sample = sample_bytes(
        recipe.model,
        kept=kept,
        text_tokens=stage.tokens.text_tokens,
        weight_bytes=weight_bytes,
        explicit_attention=machine.is_cpu,
        recompute_image=recompute_image,
        recompute_text=recompute_text,
        locked=stage.locked,
        classes=classes,
    )
    return Memory(fixed=fixed, per_sample=per_sample, host=host)


def say_hours(hours: float) -> str:
    if hours < 2:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
