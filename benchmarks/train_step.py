"""Our train step beside a bare PyTorch loop and open_clip's, on batches that lie in memory.

    python -m benchmarks.train_step --shapes cpu            # towers of a laptop's size
    python -m benchmarks.train_step --shapes b16_112_t16 b16_112_t32 l16_96_t8   # on one GPU

Each shape: the same towers, batch and precision, in turn, ROUNDS times in one process, so that what
else the machine does falls on all alike. What is compared:

  ours        the engine as training uses it: DeepSpeed ZeRO 1, its loss, a norm every tenth step
  ours in 4   the same with a quarter of the batch at a time
  bare        our towers, F.cross_entropy and torch's fused AdamW, nothing else
  open_clip   open_clip's CLIP of that shape, its ClipLoss, fused AdamW, autocast (its amp_bf16)

Images/s, by the wall and by CPU time beside ours, the share of a measured matmul ceiling (mfu), and
on a GPU the peak memory. A batch that does not fit is halved, for all. Rows go to
results/train_step.json as they are measured, in place of those of the same device, shape,
precision and batch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import this_machine
from benchmarks.towers import (
    RATE,
    SHAPES,
    Shape,
    Step,
    batch_of,
    build_engine,
    ceiling_tflops,
    our_model,
    seconds,
    training_flops,
)
from pretrain.base import distributed
from pretrain.base.distributed import Runtime
from pretrain.base.files import write_durably
from pretrain.engine.options import EngineOptions, TrainedIn

RESULTS = Path(__file__).parent / "results/train_step.json"


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
    cpu_to_ours: float  # the same per second of CPU time, in which other processes take nothing
    mfu: float  # of the matmul ceiling below
    peak_gib: float | None  # device memory; None on a CPU


def ours(
    shape: Shape, runtime: Runtime, precision: TrainedIn, options: EngineOptions, parts: int
) -> Step:
    """The engine's step; `parts` micro batches."""
    engine = build_engine(shape, runtime, precision, options, parts)
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
    kind = next(model.parameters()).dtype
    images = images.to(kind)
    rounds = precision != "fp32" and kind == torch.float32
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=rounds)

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


def open_clips(
    shape: Shape, device: torch.device, precision: TrainedIn, *, best: bool = False
) -> Step:
    """open_clip's model and loss, as its trainer calls them; best: with --torchcompile and
    --precision pure_bf16, its fastest."""
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
    if best:
        model = torch.compile(model.bfloat16())
    judge = open_clip.ClipLoss(local_loss=True, gather_with_grad=True)

    def loss_of(images: Tensor, texts: Tensor) -> Tensor:
        found: Tensor = judge(*model(images, texts))
        return found

    return plain(model, loss_of, shape, device, precision)


def spent(step: Step, count: int, device: torch.device) -> tuple[float, float]:
    """Seconds and CPU seconds of one step."""
    before = time.process_time()
    return seconds(step, count, device), (time.process_time() - before) / count


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
        {way: spent(step, chosen.steps, device) for way, step in steps.items()}
        for _ in range(chosen.rounds)
    ]
    flops = training_flops(shape)
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
            images_per_s=(rate := shape.batch / statistics.median(one[way][0] for one in rounds)),
            to_ours=statistics.median(one["ours"][0] / one[way][0] for one in rounds),
            cpu_to_ours=statistics.median(one["ours"][1] / one[way][1] for one in rounds),
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
        shape = replace(SHAPES[name], batch=chosen.batch or SHAPES[name].batch)
        while True:
            try:
                found = measured(name, shape, runtime, chosen.precision, chosen)
                break
            except torch.OutOfMemoryError:
                shape = replace(shape, batch=shape.batch // 2)
                print(f"{name}: out of memory, {shape.batch} at a time", flush=True)
                torch.cuda.empty_cache()
        keep(chosen.out, [asdict(row) for row in found])
        for row in found:
            print(json.dumps(asdict(row)), flush=True)
    distributed.stop()


if __name__ == "__main__":
    main()
