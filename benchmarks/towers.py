"""The towers that benchmarks train, on batches in memory, and how their steps are timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.base.distributed import Runtime
from pretrain.engine.engine import Engine
from pretrain.engine.options import EngineOptions, OptimizerOptions, TrainedIn
from pretrain.losses.build import build_objective
from pretrain.losses.options import LossOptions
from pretrain.models.build import build_model
from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.presets import PRESETS
from pretrain.plan.flops import forward_flops
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.vocabulary import Vocabulary

RATE = 1e-4
Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Towers and token lengths."""

    image: dict[str, Any]
    text: dict[str, Any]
    embed_dim: int
    image_px: int
    text_tokens: int
    batch: int
    vocab_size: int = 32_000

    @property
    def model(self) -> ModelOptions:
        return ModelOptions(
            embed_dim=self.embed_dim,
            image=ImageTowerOptions(**self.image),
            text=TextTowerOptions(**self.text),
        )

    @property
    def kept(self) -> int:
        """Patches of a picture."""
        return int(self.image_px // self.image["patch_px"]) ** 2


def preset(name: str, image_px: int, text_tokens: int, batch: int) -> Shape:
    one = PRESETS[name]
    return Shape(
        image=one["image"],
        text=one["text"],
        embed_dim=one["embed_dim"],
        image_px=image_px,
        text_tokens=text_tokens,
        batch=batch,
    )


SHAPES = {
    "cpu": Shape(  # the demo's reduced stage
        image={"width": 128, "depth": 4, "heads": 2, "patch_px": 8, "mlp_ratio": 4.0},
        text={"width": 128, "depth": 2, "heads": 2, "mlp_ratio": 4.0},
        embed_dim=128, image_px=32, text_tokens=8, batch=256, vocab_size=4096,
    ),
    "b16_112_t16": preset("B/16", 112, 16, 4096),
    "b16_112_t32": preset("B/16", 112, 32, 4096),
    "l16_96_t8": preset("L/16", 96, 8, 4096),
    "l16_224_t32": preset("L/16", 224, 32, 1024),
    "h14_84_t8": preset("H/14", 84, 8, 2048),
}  # fmt: skip


def our_model(shape: Shape, device: torch.device) -> CLIP:
    torch.manual_seed(0)
    return build_model(
        shape.model,
        tokens=TokenOptions(image_px=shape.image_px, text_tokens=shape.text_tokens),
        vocabulary=Vocabulary(size=shape.vocab_size, pad_id=0, bos_id=1, eos_id=2),
        device=device,
    )


def build_engine(
    shape: Shape, runtime: Runtime, precision: TrainedIn, options: EngineOptions, parts: int = 1
) -> Engine:
    """As training builds it; `parts` micro batches."""
    return Engine(
        model=our_model(shape, runtime.device),
        objective=build_objective(LossOptions()),
        runtime=runtime,
        options=options,
        optimizer=OptimizerOptions(),
        precision=precision,
        local_batch_samples=shape.batch,
        micro_batch_samples=shape.batch // parts,
    )


def training_flops(shape: Shape) -> float:
    """FLOPs that a sample costs: a forward, and a backward of twice that."""
    flops = forward_flops(shape.model, kept=shape.kept, text_tokens=shape.text_tokens)
    return 3 * flops.forward


def batch_of(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    pixels = (shape.batch, 3, shape.image_px, shape.image_px)
    tokens = (shape.batch, shape.text_tokens)
    images = torch.randn(pixels, generator=generator, device=device)
    texts = torch.randint(3, shape.vocab_size, tokens, generator=generator, device=device)
    return images, texts


def seconds(step: Step, count: int, device: torch.device) -> float:
    """Of one step."""
    waits(device)
    begin = time.perf_counter()
    for _ in range(count):
        step()
    waits(device)
    return (time.perf_counter() - begin) / count


def waits(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling_tflops(device: torch.device, precision: TrainedIn) -> float:
    """Of a large matmul in the precision's own type, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a = torch.randn(side, side, device=device).to(dtype)

    def product() -> None:
        torch.mm(a, a)

    seconds(product, 2, device)
    best = min(seconds(product, 5, device) for _ in range(5))
    return 2 * side**3 / best / 1e12
