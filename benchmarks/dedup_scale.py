"""Seconds and memory of finding near duplicates among synthetic hashes; one result a size.

    python -m benchmarks.dedup_scale --samples 1000000 10000000

Random 63-bit hashes, a tenth of them within the distance of another one, and 50,000 of an
evaluation set. Real hashes are less even, and so have fuller tables. One core; each size in a fresh
process, whose peak memory is its own. The hashes' making (reading and decoding) is not in it.
"""

import argparse
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.neighbours import find, masks
from data_prep.dedup.semantic import NOBODY
from pretrain.base.files import write_durably

RESULTS = Path(__file__).parent / "results/dedup_scale.json"
EVALUATION_SAMPLES = 50_000


def synthetic(samples: int, distance: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Hashes, those of an evaluation set, and how many of the first repeat another one at least."""
    draws = np.random.default_rng(0)
    hashes = draws.integers(1, 1 << 63, samples, dtype=np.uint64)
    copies = samples // 10
    flips = np.zeros(copies, np.uint64)
    for _ in range(distance):
        flips |= np.uint64(1) << draws.integers(0, 63, copies).astype(np.uint64)
    hashes[-copies:] = hashes[:copies] ^ flips
    return hashes, draws.integers(1, 1 << 63, EVALUATION_SAMPLES, dtype=np.uint64), copies


def measure(samples: int, distance: int) -> dict[str, Any]:
    """One size, in a process that has done nothing else."""
    hashes, evaluation, copies = synthetic(samples, distance)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = find(hashes, np.ones(samples, bool), [evaluation], distance)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    repeats = int(np.count_nonzero(found.keeper != NOBODY))
    if repeats < copies:
        raise RuntimeError(f"{repeats} repeats were found of {copies} that are there")
    return {
        "samples": samples,
        "distance": distance,
        "tables": len(masks(samples, distance)),
        "seconds": round(seconds, 2),
        "peak_rss_mib": round(peak / 1024),
        "bytes_a_row_above_the_hashes": round((peak - before) * 1024 / samples),
        "repeats": repeats,
        "planted": copies,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--samples", type=int, nargs="+", default=[1_000_000])
    options.add_argument("--distance", type=int, default=4)
    chosen = options.parse_args()
    rows = []
    for samples in chosen.samples:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(measure, samples, chosen.distance).result())
        print(json.dumps(rows[-1]))
    from benchmarks.machine import this_machine  # torch, whose memory is none of the children's

    result = {"machine": this_machine(1), "sizes": rows}
    write_durably(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
