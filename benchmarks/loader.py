"""How fast a dataset can be loaded on this machine, where the time goes, and what to change.

    python -m benchmarks.loader DATASET --image-px 96
    python -m benchmarks.loader DATASET --image-px 112 --gpu-images-per-s 13000 --picture FILE.svg

One core reads, decodes, crops and collates some thousand random samples, step by step; then the
loader itself builds whole batches with more and more threads. Files that were read lately come out
of the system's memory: the disk's own speed is another matter.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.base.seeding import Purpose, uniforms
from pretrain.batches.collate import Collator
from pretrain.batches.images import CROP_DRAWS, crop_box, resize
from pretrain.batches.loader import batches
from pretrain.batches.options import CropOptions, LoaderOptions
from pretrain.batches.order import SampleOrder
from pretrain.dataset.manifest import read_manifest, tier_for
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset, Sample
from pretrain.tokens.options import TokenOptions

SEED = 0
STEPS = ("read", "decode", "crop", "text", "collate")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one core does of each step, and what threads make of it."""

    step_us: dict[str, float]  # of a sample
    images_per_s: dict[int, float]  # of the whole loader, by threads
    tier: str
    shortest_px: int | None
    image_px: int

    @property
    def sample_us(self) -> float:
        return sum(self.step_us.values())

    @property
    def core_images_per_s(self) -> float:
        return 1e6 / self.sample_us


def measure(
    directory: Path,
    *,
    tier: str,
    image_px: int,
    patch_px: int = 16,
    text_tokens: int = 16,
    samples: int = 2048,
    batch: int = 256,
    threads: Sequence[int] = (1, 2),
) -> Measured:
    """Time every step on this thread, then the loader with so many threads."""
    torch.set_num_threads(1)
    collator = Collator(
        dataset=Dataset(directory, tier, "--tier"),
        tokens=TokenOptions(image_px=image_px, text_tokens=text_tokens),
        patch_px=patch_px,
        specials="bos",
        crop=CropOptions(),
        caption_weights={},
        seed=SEED,
    )
    order = SampleOrder(samples=len(collator.dataset), seed=SEED)
    samples -= samples % batch
    step_us = _steps(collator, order, samples, batch)
    tier_info = collator.dataset.manifest.tiers[tier]
    rates = {count: _loader(collator, order, samples, batch, count) for count in threads}
    return Measured(
        step_us=step_us,
        images_per_s=rates,
        tier=tier,
        shortest_px=tier_info.shortest_px,
        image_px=image_px,
    )


def _steps(collator: Collator, order: SampleOrder, samples: int, batch: int) -> dict[str, float]:
    """Microseconds a sample of every step, each by itself, after one round to warm up."""
    positions = np.arange(samples)
    rows = order.rows(positions)
    image_px = collator.tokens.image_px
    crops = uniforms(SEED, positions, Purpose.CROP, CROP_DRAWS)

    def timed(action: Callable[[], object]) -> float:
        begin = time.perf_counter()
        action()
        return (time.perf_counter() - begin) / samples * 1e6

    def read() -> list[Sample]:
        return [collator.dataset.read(row) for row in rows.tolist()]

    def decode_all() -> list[NDArray[np.uint8]]:
        return [decode(sample.jpeg) for sample in loaded]

    def crop() -> None:
        for picture, draws in zip(pictures, crops, strict=True):
            box = crop_box(picture.shape[0], picture.shape[1], collator.crop, draws)
            resize(picture, box, image_px)

    def text() -> None:
        for first in range(0, samples, batch):
            part = slice(first, first + batch)
            collator.text(positions[part], rows[part], loaded[part])

    def whole() -> None:
        for first in range(0, samples, batch):
            part = slice(first, first + batch)
            collator(positions[part], rows[part])

    loaded = read()
    pictures = decode_all()
    found = {"read": timed(read), "decode": timed(decode_all), "crop": timed(crop)}
    found["text"] = timed(text)
    found["collate"] = max(timed(whole) - sum(found.values()), 0.0)
    return found


def _loader(
    collator: Collator, order: SampleOrder, samples: int, batch: int, threads: int
) -> float:
    """Images/s of the loader as training uses it, on samples that were read before."""
    stream = batches(
        collator=collator,
        order=order,
        start=0,
        end=samples,
        global_batch_samples=batch,
        rank=0,
        world_size=1,
        options=LoaderOptions(workers=threads, read_ahead=False),
    )
    begin = time.perf_counter()
    for _ in stream:
        pass
    return samples / (time.perf_counter() - begin)


def advice(measured: Measured, tiers: dict[str, int | None], wanted: float | None) -> list[str]:
    """What to change, a line each; nothing where nothing is wrong."""
    lines = []
    enough = {name: px for name, px in tiers.items() if px is None or px >= measured.image_px}
    smallest = min(enough, key=lambda name: enough[name] or sys.maxsize, default=None)
    own = measured.shortest_px or sys.maxsize
    if measured.shortest_px is not None and measured.shortest_px < measured.image_px:
        lines.append(
            f"tier {measured.tier} has {measured.shortest_px} px, asked for are "
            f"{measured.image_px}: pictures are enlarged; choose one of {sorted(enough)}, or "
            "build such a tier"
        )
    elif smallest is not None and (enough[smallest] or sys.maxsize) < own:
        lines.append(f"--tier {smallest} has pictures enough for {measured.image_px} px, smaller")
    elif own > 2.5 * measured.image_px:
        side = round(measured.image_px * 1.45 / 16) * 16
        lines.append(
            f"no tier is near {measured.image_px} px: `data_prep build --tiers {side},…` makes "
            "one that decodes several times as fast"
        )
    most = max(measured.step_us, key=measured.step_us.__getitem__)
    lines.append(
        f"{measured.step_us[most] / measured.sample_us:.0%} of the time is spent on: {most}"
    )
    if wanted is not None:
        cores = wanted / measured.core_images_per_s
        here = len(os.sched_getaffinity(0))
        lines.append(f"{wanted:,.0f} images/s need {cores:.1f} such cores; this machine has {here}")
    return lines


def draw(measured: Measured, path: Path) -> None:
    """A picture: time by step, and images/s by threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=(3, 2))
    start = 0.0
    for number, step in enumerate(STEPS):
        width = measured.step_us[step]
        left.barh(0, width, left=start, color=f"C{number}", label=f"{step} {width:.0f} µs")
        start += width
    left.set(yticks=[], xlabel="microseconds a sample on one core", ylim=(-0.5, 1.1))
    left.set_title(
        f"tier {measured.tier}, {measured.image_px} px: {measured.core_images_per_s:,.0f} "
        "images/s a core",
        fontsize=10,
    )
    left.legend(ncols=3, fontsize=8, loc="upper left", frameon=False)
    names = [str(count) for count in measured.images_per_s]
    bars = right.bar(names, list(measured.images_per_s.values()), color="C0")
    right.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    right.set(xlabel="threads", ylabel="images/s")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def report(measured: Measured) -> list[str]:
    """The table, a line each."""
    lines = [f"{'step':<10}{'us/sample':>10}{'share':>8}"]
    for step, value in measured.step_us.items():
        lines.append(f"{step:<10}{value:>10.1f}{value / measured.sample_us:>8.0%}")
    lines.append(f"{'one core':<10}{measured.core_images_per_s:>10,.0f} images/s")
    for count, rate in measured.images_per_s.items():
        lines.append(f"{f'{count} threads':<10}{rate:>10,.0f} images/s")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the table and what to change; 2 where the dataset cannot be read."""
    options = argparse.ArgumentParser(prog="benchmarks.loader", description=__doc__)
    options.add_argument("dataset", type=Path)
    options.add_argument("--image-px", type=int, required=True)
    options.add_argument("--tier", help="image tier; by default the smallest that is large enough")
    options.add_argument("--patch-px", type=int, default=16)
    options.add_argument("--text-tokens", type=int, default=16)
    options.add_argument("--samples", type=int, default=2048)
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--gpu-images-per-s", type=float, help="what the loader has to feed")
    options.add_argument("--picture", type=Path, help="an .svg or .png of it")
    chosen = options.parse_args(arguments)
    try:
        manifest = read_manifest(chosen.dataset)
        tiers = {name: tier.shortest_px for name, tier in manifest.tiers.items()}
        cores = len(os.sched_getaffinity(0))
        measured = measure(
            chosen.dataset,
            tier=chosen.tier or tier_for(manifest, chosen.image_px),
            image_px=chosen.image_px,
            patch_px=chosen.patch_px,
            text_tokens=chosen.text_tokens,
            samples=chosen.samples,
            batch=chosen.batch,
            threads=sorted({1, 2, min(4, cores), cores}),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(measured)))
    print("\n".join(advice(measured, tiers, chosen.gpu_images_per_s)))
    if chosen.picture is not None:
        draw(measured, chosen.picture)
        print(chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
