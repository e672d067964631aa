"""Reading shuffled samples from a disk whose files are not in memory, reading ahead or not.

    sudo python -m benchmarks.cold_reads  # empties the system's cache of files each time

A dataset of small noise pictures is read in the order of training, no decoding; one thread, so that
waiting shows. Rows go to results/cold_reads.json.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from benchmarks.machine import this_machine
from data_prep.__main__ import main as data_prep
from pretrain.base.files import write_durably
from pretrain.batches.ahead import ReadAhead
from pretrain.batches.order import SampleOrder
from pretrain.dataset.reader import Dataset

RESULTS = Path(__file__).parent / "results/cold_reads.json"
BATCH = 512


def noise_corpus(path: Path, count: int) -> None:
    """Pictures of 8 kB that no codec makes smaller."""
    draws = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        pixels = draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    captions = [f"noise number {number}" for number in range(count)]
    pl.DataFrame({"image": pictures, "caption": captions}).write_parquet(path)


def empty_cache(dataset: Dataset) -> None:
    """Nothing of any file is in memory after this. PermissionError without root."""
    dataset.close()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def rate(dataset: Dataset, order: SampleOrder, how: str) -> float:
    """Samples/s of one epoch from an empty cache."""
    empty_cache(dataset)
    begin = time.perf_counter()
    ahead = ReadAhead(dataset, order, 0, 1) if how == "read ahead" else None
    for first in range(0, len(dataset) - BATCH + 1, BATCH):
        if ahead is not None:
            ahead.at(first)
        positions = np.arange(first, first + BATCH)
        rows = positions if how == "file order" else order.rows(positions)
        for row in rows.tolist():
            dataset.read(row)
    if ahead is not None:
        ahead.close()
    return len(dataset) / (time.perf_counter() - begin)


def main() -> None:
    """Build, measure in turn, keep the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--samples", type=int, default=60_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--folder", type=Path, help="on the disk to measure")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        noise_corpus(Path(folder) / "noise.parquet", chosen.samples)
        words = ["build", "--source", f"{folder}/noise.parquet", "--out", f"{folder}/set"]
        words += ["--tiers", "full:95", "--tagger", "none", "--vocab-size", "300"]
        if data_prep([*words, "--byte-fallback", "false"]):
            sys.exit("the dataset could not be built")
        dataset = Dataset(Path(folder) / "set", "full")
        order = SampleOrder(samples=len(dataset), seed=0, window_samples=16_384)
        ways = ("file order", "shuffled", "read ahead")
        rounds = [{how: rate(dataset, order, how) for how in ways} for _ in range(chosen.rounds)]
        sizes = [shard.bytes for shard in dataset.manifest.tiers["full"].shards]
    result = {
        "machine": this_machine(ranks=1),
        "date": date.today().isoformat(),
        "samples": chosen.samples,
        "bytes": sum(sizes),
        "samples_per_s": rounds,
    }
    write_durably(RESULTS, json.dumps(result, indent=2) + "\n")
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
