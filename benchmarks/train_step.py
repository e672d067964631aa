"""Our train step beside a bare PyTorch loop and open_clip's, on batches that lie in memory.

    python -m benchmarks.train_step --shapes cpu            # towers of a laptop's size
    python -m benchmarks.train_step --shapes b16_112_t16 b16_112_t32 l16_96_t8   # on one GPU

Each shape: the same towers, batch and precision, in turn, ROUNDS times in one process, so that what
else the machine does falls on all alike. What is compared:

  ours        the engine as training uses it: DeepSpeed ZeRO 1, its loss, a norm every tenth step
  ours in 4   the same with a quarter of the batch at a time
  bare        our towers, F.cross_entropy and torch's fused AdamW, nothing else
  open_clip   open_clip's CLIP of that shape, its ClipLoss, fused AdamW, autocast (its amp_bf16)

Images/s, the share of a measured matmul ceiling (mfu), and on a GPU the peak memory. A batch that
does not fit is halved, for all. Rows go to results/train_step.json as they are measured, in place
of those of the same device, shape, precision and batch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import this_machine
from pretrain.base import distributed
from pretrain.base.distributed import Runtime
from pretrain.base.files import write_durably
from pretrain.engine.engine import Engine
from pretrain.engine.options import EngineOptions, OptimizerOptions, TrainedIn
from pretrain.losses.build import build_objective
from pretrain.losses.options import LossOptions
from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.presets import PRESETS
from pretrain.plan.flops import forward_flops
from pretrain.tokens.vocabulary import Vocabulary

RESULTS = Path(__file__).parent / "results/train_step.json"
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train one shape."""

    device: str
    date: str
    compiled: bool  # ours; the other ways are eager
    shape: str
    way: str
    precision: str
    batch: int
    images_per_s: float  # of the median round
    to_ours: float  # median over rounds of its images/s over ours
    mfu: float  # of the matmul ceiling below
    peak_gib: float | None  # device memory; None on a CPU


def our_model(shape: Shape, device: torch.device) -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        ModelOptions(
            embed_dim=shape.embed_dim,
            image=ImageTowerOptions(**shape.image),
            text=TextTowerOptions(**shape.text),
        ),
        vocabulary=Vocabulary(size=shape.vocab_size, pad_id=0, bos_id=1, eos_id=2),
        image_px=shape.image_px,
        text_tokens=shape.text_tokens,
        explicit_attention=device.type == "cpu",
    ).to(device)


def ours(
    shape: Shape, runtime: Runtime, precision: TrainedIn, options: EngineOptions, parts: int
) -> Step:
    """The engine's step; `parts` micro batches."""
    batch = shape.batch
    engine = Engine(
        model=our_model(shape, runtime.device),
        objective=build_objective(LossOptions()),
        runtime=runtime,
        options=options,
        optimizer=OptimizerOptions(),
        precision=precision,
        local_batch_samples=batch,
        micro_batch_samples=batch // parts,
    )
    images, texts = batch_of(shape, runtime.device)
    images = images.to(engine.dtype)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        engine.step(
            images,
            texts,
            None,
            learning_rate=RATE,
            objective_learning_rate=RATE,
            measure=done % 10 == 0,
        )

    return step


def plain(
    model: torch.nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    shape: Shape,
    device: torch.device,
    precision: TrainedIn,
) -> Step:
    """Forward, loss, backward, fused AdamW, and nothing else."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    images, texts = batch_of(shape, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32")

    def step() -> None:
        with autocast:
            loss = loss_of(images, texts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare(shape: Shape, device: torch.device, precision: TrainedIn) -> Step:
    model = our_model(shape, device)
    scale = torch.nn.Parameter(torch.tensor(2.66, device=device))
    model.register_parameter("log_scale", scale)
    targets = torch.arange(shape.batch, device=device)

    def loss_of(images: Tensor, texts: Tensor) -> Tensor:
        image, text = model(images, texts)
        logits = scale.exp() * image.float() @ text.float().T
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    return plain(model, loss_of, shape, device, precision)


def open_clips(shape: Shape, device: torch.device, precision: TrainedIn) -> Step:
    """open_clip's model and loss, as its trainer calls them."""
    import open_clip

    def tower(options: dict[str, Any]) -> dict[str, Any]:
        return {"width": options["width"], "layers": options["depth"]}

    image, text = shape.image, shape.text
    model = open_clip.CLIP(
        embed_dim=shape.embed_dim,
        vision_cfg={
            **tower(image),
            "image_size": shape.image_px,
            "patch_size": image["patch_px"],
            "head_width": image["width"] // image["heads"],
            "mlp_ratio": image["mlp_ratio"],
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
        },
        text_cfg={
            **tower(text),
            "heads": text["heads"],
            "context_length": shape.text_tokens,
            "vocab_size": shape.vocab_size,
            "no_causal_mask": True,
            "pool_type": "last",
        },
    ).to(device)
    judge = open_clip.ClipLoss(local_loss=True, gather_with_grad=True)

    def loss_of(images: Tensor, texts: Tensor) -> Tensor:
        found: Tensor = judge(*model(images, texts))
        return found

    return plain(model, loss_of, shape, device, precision)


def batch_of(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape.batch, 3, shape.image_px, shape.image_px, generator=generator)
    texts = torch.randint(
        3, shape.vocab_size, (shape.batch, shape.text_tokens), generator=generator
    )
    return images.to(device), texts.to(device)


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


def measured(
    name: str, shape: Shape, runtime: Runtime, precision: TrainedIn, chosen: argparse.Namespace
) -> list[Row]:
    """All ways of one shape, in turn."""
    device = runtime.device
    options = EngineOptions(compile=chosen.compile)
    ways: dict[str, Callable[[], Step]] = {
        "ours": lambda: ours(shape, runtime, precision, options, 1),
        "ours in 4": lambda: ours(shape, runtime, precision, options, 4),
        "bare": lambda: bare(shape, device, precision),
        "open_clip": lambda: open_clips(shape, device, precision),
    }
    ceiling = ceiling_tflops(device, precision)
    steps: dict[str, Step] = {}
    peaks: dict[str, float | None] = dict.fromkeys(ways)
    for way, build in ways.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        steps[way] = build()
        seconds(steps[way], 3, device)
        if device.type == "cuda":
            peaks[way] = (torch.cuda.max_memory_allocated(device) - before) / 2**30
    rounds = [
        {way: shape.batch / seconds(step, chosen.steps, device) for way, step in steps.items()}
        for _ in range(chosen.rounds)
    ]
    flops = (
        3
        * forward_flops(
            ModelOptions(
                embed_dim=shape.embed_dim,
                image=ImageTowerOptions(**shape.image),
                text=TextTowerOptions(**shape.text),
            ),
            kept=(shape.image_px // shape.image["patch_px"]) ** 2,
            text_tokens=shape.text_tokens,
        ).forward
    )
    machine = this_machine(ranks=1)
    return [
        Row(
            device=machine["cpu"] if device.type == "cpu" else machine["device"],
            date=date.today().isoformat(),
            compiled=chosen.compile,
            shape=name,
            way=way,
            precision=precision,
            batch=shape.batch,
            images_per_s=(rate := statistics.median(one[way] for one in rounds)),
            to_ours=statistics.median(one[way] / one["ours"] for one in rounds),
            mfu=rate * flops / 1e12 / ceiling,
            peak_gib=peaks[way],
        )
        for way in ways
    ]


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows beside those of other measurements."""

    def key(row: dict[str, Any]) -> list[Any]:
        return [row[n] for n in ("device", "compiled", "shape", "precision", "batch")]

    before = json.loads(path.read_text())["rows"] if path.is_file() else []
    kept = [row for row in before if key(row) != key(rows[0])]
    write_durably(path, json.dumps({"rows": [*kept, *rows]}, indent=2) + "\n")


def main() -> None:
    """Measure the chosen shapes and write their rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["cpu"])
    options.add_argument("--precision", choices=["fp32", "bf16", "autocast"], default="bf16")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--steps", type=int, default=5, help="of each way in a round")
    options.add_argument("--batch", type=int, help="in place of the shape's")
    options.add_argument("--compile", action="store_true", help="ours by torch.compile")
    options.add_argument("--out", type=Path, default=RESULTS)
    chosen = options.parse_args()
    runtime = distributed.start()
    for name in chosen.shapes:
        shape = Shape(**{**asdict(SHAPES[name]), "batch": chosen.batch or SHAPES[name].batch})
        while True:
            try:
                found = measured(name, shape, runtime, chosen.precision, chosen)
                break
            except torch.OutOfMemoryError:
                shape = Shape(**{**asdict(shape), "batch": shape.batch // 2})
                print(f"{name}: out of memory, {shape.batch} at a time", flush=True)
                torch.cuda.empty_cache()
        keep(chosen.out, [asdict(row) for row in found])
        for row in found:
            print(json.dumps(asdict(row)), flush=True)
    distributed.stop()


if __name__ == "__main__":
    main()
