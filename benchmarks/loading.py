"""The loader beside PIL on originals and beside open_clip's own pipeline, on the same photographs.

    pip install --no-deps --target OLD webdataset==0.2.86  # open_clip 3.3.0 needs it
    PYTHONPATH=OLD python -m benchmarks.loading

One core: the loader on one thread, the others in this process; in turn, ROUNDS times. Each trains
on random crops of 0.4 to 1 of the area. Rows go to results/loading.json.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from benchmarks.loader import measure
from benchmarks.machine import this_machine
from benchmarks.photographs import photographs, write_parquet, write_tar
from data_prep.__main__ import main as data_prep
from pretrain.base import compat
from pretrain.base.files import write_durably
from pretrain.base.seeding import Purpose, uniforms
from pretrain.batches.images import CROP_DRAWS, crop_box
from pretrain.batches.options import CropOptions

compat.make_torchvision_importable()

RESULTS = Path(__file__).parent / "results/loading.json"
PHOTOGRAPHS, BATCH, ROUNDS = 2048, 256, 5
# (picture size, tier of ours)
CASES = ((112, "160"), (64, "160"), (224, "full"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One size, one core; images/s are medians, ratios medians over rounds."""

    image_px: int
    tier: str
    ours: float
    pil: float
    open_clip: float
    over_pil: float
    over_open_clip: float
    step_us: dict[str, float]


def pil_rate(pictures: list[tuple[bytes, str]], image_px: int) -> float:
    """Decode by PIL, the same crops, bicubic, an array: what a torchvision pipeline does."""
    draws = uniforms(0, np.arange(len(pictures)), Purpose.CROP, CROP_DRAWS)
    begin = time.perf_counter()
    for (jpeg, _), one in zip(pictures, draws, strict=True):
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
        top, left, height, width = crop_box(picture.height, picture.width, CropOptions(), one)
        box = (left, top, left + width, top + height)
        np.asarray(picture.resize((image_px, image_px), Image.Resampling.BICUBIC, box=box))
    return len(pictures) / (time.perf_counter() - begin)


def open_clip_rate(tar: Path, image_px: int, count: int) -> float:
    """open_clip's training pipeline on a shard: `get_wds_dataset`, without worker processes."""
    import open_clip
    from open_clip_train.data import get_wds_dataset

    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=image_px),
        is_train=True,
        aug_cfg={"scale": (0.4, 1.0)},
    )
    arguments = SimpleNamespace(
        train_data=str(tar),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        train_num_samples=count,
        batch_size=BATCH,
        workers=0,
        seed=0,
        world_size=1,
        rank=0,
        distributed=False,
    )
    data = get_wds_dataset(
        arguments, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-16")
    )
    begin, seen = time.perf_counter(), 0
    for images, _ in data.dataloader:
        seen += len(images)
        if seen >= count // 2:  # the pipeline is the same all the way, and slow
            break
    return seen / (time.perf_counter() - begin)


def build(pictures: list[tuple[bytes, str]], folder: Path) -> tuple[Path, Path]:
    """(our dataset in two tiers, the same as one WebDataset shard)."""
    write_parquet(pictures, folder / "photographs.parquet")
    (folder / "wds").mkdir()
    write_tar(pictures, folder / "wds" / "00000.tar")
    words = ["build", "--source", str(folder / "photographs.parquet"), "--out"]
    words += [str(folder / "ours"), "--tiers", "160:90,full:90", "--tagger", "none"]
    words += ["--vocab-size", "300", "--byte-fallback", "false"]
    if data_prep(words):
        sys.exit("the dataset could not be built")
    return folder / "ours", folder / "wds" / "00000.tar"


def main() -> None:
    """Measure every size and write the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--photographs", type=int, default=PHOTOGRAPHS)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--out", type=Path, default=RESULTS)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = photographs(chosen.photographs)
        dataset, tar = build(pictures, Path(folder))
        for image_px, tier in CASES:
            rounds = [
                (
                    measure(
                        dataset, tier=tier, image_px=image_px, samples=len(pictures), threads=(1,)
                    ),
                    pil_rate(pictures, image_px),
                    open_clip_rate(tar, image_px, len(pictures)),
                )
                for _ in range(chosen.rounds)
            ]
            ours = [one.images_per_s[1] for one, _, _ in rounds]
            row = Row(
                image_px=image_px,
                tier=tier,
                ours=statistics.median(ours),
                pil=statistics.median(pil for _, pil, _ in rounds),
                open_clip=statistics.median(theirs for _, _, theirs in rounds),
                over_pil=statistics.median(
                    a / pil for a, (_, pil, _) in zip(ours, rounds, strict=True)
                ),
                over_open_clip=statistics.median(
                    a / theirs for a, (_, _, theirs) in zip(ours, rounds, strict=True)
                ),
                step_us=rounds[-1][0].step_us,
            )
            rows.append(asdict(row))
            print(json.dumps(rows[-1]), flush=True)
            result = {
                "machine": this_machine(ranks=1),
                "date": date.today().isoformat(),
                "photographs": chosen.photographs,
                "rows": rows,
            }
            write_durably(chosen.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
