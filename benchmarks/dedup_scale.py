"""Seconds and memory of finding near duplicates among synthetic pictures; one result a size.

    python -m benchmarks.dedup_scale --samples 100000 1000000 --workers 2

Random soft pictures, a tenth of them noisy copies of others. Real pictures are less even: more of
them share keys. Each size in a fresh process. The views' making is not in it.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import zoom

from data_prep.dedup import NOBODY
from data_prep.dedup.hashes import COLOUR_PX, GREY_PX, VIEW_BYTES, VIEWS
from data_prep.dedup.neighbours import find
from data_prep.pool import PoolOptions
from pretrain.base.files import write_durably

RESULTS = Path(__file__).parent / "results/dedup_scale.json"
BLOCK = 10_000


def write_synthetic(path: Path, samples: int) -> int:
    """Views of pictures of 5 x 5 random colours; how many of the last are copies of the first."""
    draws = np.random.default_rng(0)
    shape = (samples, VIEWS, VIEW_BYTES)
    views = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    for first in range(0, samples, BLOCK):
        part = views[first : first + BLOCK]
        coarse = draws.uniform(0, 255, (len(part), 5, 5, 3)).astype(np.float32)
        grey = zoom(coarse[..., 0], (1, GREY_PX / 5, GREY_PX / 5), order=1)
        colour = zoom(coarse[..., 1:], (1, COLOUR_PX / 5, COLOUR_PX / 5, 1), order=1)
        flat = [plane.reshape(len(part), 1, -1) for plane in (grey, colour)]
        part[:] = np.concatenate(flat, axis=2)
    copies = samples // 10
    for first in range(0, copies, BLOCK):
        of = views[first : min(first + BLOCK, copies)]
        noisy = of + draws.normal(0, 2, of.shape)
        views[samples - copies + first :][: len(of)] = np.clip(noisy, 0, 255)
    return copies


def measure(samples: int, workers: int) -> dict[str, Any]:
    """One size, in a process that has done nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "views.npy"
        copies = write_synthetic(path, samples)
        start = time.perf_counter()
        found = find([path], np.ones(samples, bool), 18.0, PoolOptions(workers=workers))
        seconds = time.perf_counter() - start
    ends = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "samples": samples,
        "workers": workers,
        "seconds": round(seconds, 2),
        "cpu_seconds_of_workers": round(ends[1].ru_utime + ends[1].ru_stime, 2),
        "peak_rss_mib_of_a_worker": round(ends[1].ru_maxrss / 1024),
        "repeats": int(np.count_nonzero(found.keeper != NOBODY)),
        "planted": copies,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--samples", type=int, nargs="+", default=[100_000])
    options.add_argument("--workers", type=int, default=2)
    chosen = options.parse_args()
    rows = []
    for samples in chosen.samples:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(measure, samples, chosen.workers).result())
        print(json.dumps(rows[-1]), flush=True)
    from benchmarks.machine import this_machine  # torch, whose memory is none of the children's

    result = {"machine": this_machine(1), "sizes": rows}
    write_durably(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
