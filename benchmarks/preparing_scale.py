"""What `data_prep build` costs a sample, and its memory, from 10 thousand to a million samples.

    python -m benchmarks.preparing_scale [--samples 10000 100000 1000000]

Synthetic: distinct 24 px JPEGs of noise with captions of 12 random words, so that what is measured
is all that a picture's pixels do not cost. All options as by default. A row is written as it ends.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import simplejpeg

from benchmarks.machine import this_machine
from benchmarks.photographs import WORDS
from benchmarks.usage import used_by
from pretrain.base.files import write_durably

RESULTS = Path(__file__).parent / "results/preparing_scale.json"
SIDE_PX, FILE_ROWS = 24, 100_000


def write_corpus(folder: Path, samples: int) -> None:
    """Parquet files of FILE_ROWS rows at most, their pictures all different."""
    draws = np.random.default_rng(samples)
    for number, first in enumerate(range(0, samples, FILE_ROWS)):
        images, captions = [], []
        for _ in range(first, min(samples, first + FILE_ROWS)):
            pixels = draws.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
            images.append(simplejpeg.encode_jpeg(pixels, quality=50))
            captions.append(" ".join(WORDS[word] for word in draws.integers(0, len(WORDS), 12)))
        table = pl.DataFrame({"image": images, "caption": captions})
        table.write_parquet(folder / f"{number:05d}.parquet")


def measured(samples: int, workers: int) -> dict[str, float]:
    """One build in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        write_corpus(source, samples)
        words = ["build", "--source", f"{source}/*.parquet", "--out", f"{folder}/set"]
        words += ["--workers", str(workers)]
        used = used_by([sys.executable, "-m", "data_prep", *words])
    return {
        "samples": samples,
        "cpu_ms_per_sample": round(used.cpu_s / samples * 1e3, 3),
        "wall_s": round(used.wall_s, 1),
        "peak_mib": round(used.peak_mib),  # of the largest process
    }


def main() -> None:
    """Measure each size and write the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--out", type=Path, default=RESULTS)
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    workers = len(os.sched_getaffinity(0))
    rows = []
    for samples in chosen.samples:
        rows.append(measured(samples, workers))
        print(json.dumps(rows[-1]), flush=True)
        result = {
            "machine": this_machine(ranks=workers),
            "date": date.today().isoformat(),
            "rows": rows,
        }
        write_durably(chosen.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
