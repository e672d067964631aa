"""What it costs to bring batches to the GPU: copied ahead of the step, or as they come.

    python -m benchmarks.feeding [--shape b16_112_t16] [--batch 2048]

The engine's step on the same host batches, brought in three ways, in turn, ROUNDS times: `resident`
lie on the device already, `as they come` are copied from ordinary memory when the step needs them,
`ahead` are what training does (pretrain.batches.feed). Also which calls make the host wait for the
device in a step, by the profiler. Rows go to results/feeding.json.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import this_machine
from benchmarks.towers import RATE, SHAPES, Shape, build_engine
from pretrain.base import distributed
from pretrain.base.files import write_durably
from pretrain.batches.augment import AUGMENT_DRAWS, Pictures
from pretrain.batches.collate import Batch
from pretrain.batches.feed import DeviceBatch, feed
from pretrain.batches.options import AugmentOptions
from pretrain.engine.engine import Engine
from pretrain.engine.options import EngineOptions

RESULTS = Path(__file__).parent / "results/feeding.json"
ROUNDS, STEPS, HOST_BATCHES = 5, 10, 3
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
Ways = dict[str, Callable[[], Iterator[DeviceBatch]]]


def host_batches(shape: Shape, *, pinned: bool) -> list[Batch]:
    """As the collator makes them, of random pixels."""
    draws = np.random.default_rng(0)
    found = []
    for _ in range(HOST_BATCHES):
        pixels = torch.empty(
            (shape.batch, shape.image_px, shape.image_px, 3), dtype=torch.uint8, pin_memory=pinned
        ).numpy()
        pixels[:] = draws.integers(0, 256, pixels.shape, np.uint8)
        found.append(
            Batch(
                positions=np.arange(shape.batch),
                rows=np.arange(shape.batch),
                images=pixels,
                text_ids=draws.integers(3, shape.vocab_size, (shape.batch, shape.text_tokens)),
                keep_index=None,
                augment=draws.random((shape.batch, AUGMENT_DRAWS), np.float32),
                replaced={},
                replaced_first={},
                replaced_in_a_row=0,
            )
        )
    return found


def as_they_come(stream: Iterator[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """Copied when they are needed, on the step's own stream."""
    for batch in stream:
        images, texts, draws = (
            torch.from_numpy(batch[name]).to(device, non_blocking=True)
            for name in ("images", "text_ids", "augment")
        )
        yield DeviceBatch(images=images, text_ids=texts, keep_index=None, augment=draws, host=batch)


def ways(shape: Shape, device: torch.device) -> Ways:
    """Streams without an end, by name."""
    pinned, pageable = (host_batches(shape, pinned=pinned) for pinned in (True, False))
    resident = list(as_they_come(iter(pageable), device))
    return {
        "resident": lambda: itertools.cycle(resident),
        "as they come": lambda: as_they_come(itertools.cycle(pageable), device),
        "ahead": lambda: feed(itertools.cycle(pinned), device),
    }


def train(
    engine: Engine, stream: Iterator[DeviceBatch], augment: AugmentOptions, steps: int
) -> float:
    """Seconds a step."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for fed in itertools.islice(stream, steps):
        pictures = Pictures(
            images=fed.images,
            draws=fed.augment,
            options=augment,
            normalisation="imagenet",
            dtype=engine.dtype,
        )
        engine.step(
            pictures,
            fed.text_ids,
            fed.keep_index,
            learning_rate=RATE,
            objective_learning_rate=RATE,
        )
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def waits(
    engine: Engine, stream: Iterator[DeviceBatch], augment: AugmentOptions
) -> dict[str, float]:
    """Calls a step in which the host waits for the device, by name."""
    train(engine, stream, augment, 1)
    with torch.profiler.profile() as profile:
        train(engine, stream, augment, 4)
    counts = Counter(event.name for event in profile.events())
    # `train` itself waits twice.
    return {name: counts[name] / 4 for name in WAITS} | {"of which `train` itself": 2 / 4}


def main() -> None:
    """Measure and write the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", choices=sorted(SHAPES), default="b16_112_t16")
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument("--out", type=Path, default=RESULTS)
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU here: there is nothing to copy to")
    runtime = distributed.start()
    shape = replace(SHAPES[chosen.shape], batch=chosen.batch)
    augment = AugmentOptions(brightness=0.2, grey=0.2)
    streams = ways(shape, runtime.device)
    rows = []
    for parts in (1, 4):
        engine = build_engine(shape, runtime, "bf16", EngineOptions(), parts)
        for stream in streams.values():
            train(engine, stream(), augment, 3)
        rounds = [
            {name: train(engine, stream(), augment, STEPS) for name, stream in streams.items()}
            for _ in range(ROUNDS)
        ]
        for name in streams:
            torch.cuda.reset_peak_memory_stats()
            train(engine, streams[name](), augment, 2)
            row = {
                "way": name,
                "parts": parts,
                "step_ms": 1e3 * statistics.median(one[name] for one in rounds),
                "over_resident": statistics.median(one[name] / one["resident"] for one in rounds),
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                "waits_a_step": waits(engine, streams[name](), augment),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        engine.close()
        result = {
            "machine": this_machine(ranks=1),
            "date": date.today().isoformat(),
            "shape": chosen.shape,
            "batch": chosen.batch,
            "rows": rows,
        }
        write_durably(chosen.out, json.dumps(result, indent=2) + "\n")
    distributed.stop()


if __name__ == "__main__":
    main()
